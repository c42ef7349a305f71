//! The program `clasp`; see the library.

use std::process::ExitCode;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: clasp_cli::allocator::MiMalloc = clasp_cli::allocator::MiMalloc;

fn main() -> ExitCode {
    clasp_cli::allocator::keep_pages();
    ExitCode::from(clasp_cli::run(std::env::args_os()))
}
