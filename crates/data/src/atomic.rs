//! Files that appear whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fs_err as fs;

/// Writes a file under a temporary name in the same folder, syncs it and renames it.
///
/// Whoever looks at `path` sees the old content or the new, never a part of it, whatever happens
/// in between (a kill, a full disk, an error of `write`). After an error the temporary file is
/// removed; after a kill it stays, hidden and ending in `.tmp`.
///
/// # Errors
/// What `write` returned, or the error of the file system, which names the file.
pub fn atomic_write(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    replace(path, write, true)?;
    sync_folder(path);
    Ok(())
}

/// As [`atomic_write`], without waiting for the disk: for many small files that can be made again.
/// After a crash of the whole system, not of the program, such a file may be empty.
///
/// # Errors
/// As [`atomic_write`].
pub fn atomic_write_unsynced(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    replace(path, write, false)
}

fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    sync: bool,
) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    let result = write_new(&temporary, write, sync).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // The first error is the one to report; a file that cannot be removed changes nothing.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_new(
    temporary: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    sync: bool,
) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(temporary)?;
    let mut buffered = BufWriter::with_capacity(1 << 18, file);
    write(&mut buffered)?;
    buffered.flush()?;
    if sync {
        buffered.get_ref().sync_all()?;
    }
    Ok(())
}

/// `.name.process-count.tmp` beside `path`: two processes, or two threads, never share one.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        let message = format!("`{}` does not name a file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let name = format!(".{}.{process}-{count}.tmp", name.to_string_lossy());
    Ok(path.with_file_name(name))
}

/// Makes the rename itself durable. Not every file system can; then the rename is still atomic.
fn sync_folder(path: &Path) {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if let Ok(folder) = fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        for content in ["old", "new"] {
            atomic_write(&path, |w| w.write_all(content.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn an_error_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        atomic_write(&path, |w| w.write_all(b"old")).unwrap();
        let error = atomic_write(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(io::Error::new(io::ErrorKind::StorageFull, "disk full"))
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent").join("a.bin");
        let error = atomic_write(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }

    #[test]
    fn a_path_without_a_name_is_an_error() {
        assert!(atomic_write(Path::new("/"), |_| Ok(())).is_err());
    }
}
