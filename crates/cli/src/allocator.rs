//! The allocator of a program or extension module, which has to install it, and how long it keeps
//! memory that is not in use.

#[cfg(feature = "mimalloc")]
pub use mimalloc::MiMalloc;

/// Keeps freed pages for the next step instead of giving them back to the system at once: the
/// system clears a page each time that it hands it out, which was a third of the time of a training
/// step (docs/LOG.md). `MIMALLOC_PURGE_DELAY` in the environment goes before.
#[allow(unsafe_code)]
pub fn keep_pages() {
    /// Milliseconds; mimalloc waits ten times as long for large blocks. Much longer than a step; a
    /// process that has been idle for that long gives its pages back.
    #[cfg(feature = "mimalloc")]
    const DELAY: std::ffi::c_long = 60_000;
    /// `mi_option_purge_delay`, which the bindings do not name; 15 in mimalloc 2 and 3.
    #[cfg(feature = "mimalloc")]
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    #[cfg(feature = "mimalloc")]
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number in mimalloc's table of options; any number is accepted.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, DELAY) };
    }
}
