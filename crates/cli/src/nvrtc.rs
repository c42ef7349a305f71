//! What CUDA's run-time compiler needs on a machine: without it the first kernel ends the program
//! with a panic of a library, so it is looked for before.

use std::path::Path;

/// Headers that compiled kernels include.
const HEADERS: [&str; 5] = [
    "cuda_bf16.h",
    "cuda_fp16.h",
    "cooperative_groups.h",
    "mma.h",
    "crt/mma.h",
];

/// Why kernels cannot be compiled here, and what to do; none if they can.
#[cfg(feature = "cuda-nvrtc")]
#[allow(unsafe_code)]
pub fn obstacle() -> Option<String> {
    // SAFETY: it opens the libraries of CUDA by their names, and closes them.
    let has_library = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    let toolkit = cubecl_cuda::install::cuda_path();
    obstacle_of(has_library, toolkit.as_deref())
}

/// As [`obstacle`], for a machine with that toolkit.
fn obstacle_of(has_library: bool, toolkit: Option<&Path>) -> Option<String> {
    let obstacle = match toolkit {
        _ if !has_library => {
            "the library libnvrtc was not found\n\
             hint: install CUDA's NVRTC, or put the folder of libnvrtc.so into LD_LIBRARY_PATH"
                .to_owned()
        }
        None => "the headers of CUDA were not found\n\
                 hint: install the CUDA toolkit, or set CUDA_PATH to the folder with `include/cuda_bf16.h`"
            .to_owned(),
        Some(toolkit) => {
            let include = toolkit.join("include");
            let missing = { HEADERS.iter() }.find(|header| !include.join(header).is_file())?;
            format!(
                "no {missing} in {}\n\
                 hint: install the headers of the CUDA toolkit, or set CUDA_PATH to the folder with \
                 `include/{missing}`",
                include.display()
            )
        }
    };
    Some(obstacle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let of = |library, toolkit| obstacle_of(library, toolkit).unwrap_or_default();
        assert!(of(false, Some(folder.path())).contains("LD_LIBRARY_PATH"));
        assert!(of(true, None).contains("CUDA_PATH"));

        let include = folder.path().join("include");
        fs_err::create_dir_all(include.join("crt")).unwrap();
        for (index, header) in HEADERS.iter().enumerate() {
            let text = of(true, Some(folder.path()));
            assert!(
                text.contains(*header) && text.contains("CUDA_PATH"),
                "{index}: {text}"
            );
            fs_err::write(include.join(header), "").unwrap();
        }
        assert_eq!(obstacle_of(true, Some(folder.path())), None);
    }
}
