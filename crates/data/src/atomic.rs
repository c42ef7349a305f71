//! Files that appear whole or not at all, and folders that one process at a time writes.

use std::fs::TryLockError;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fs_err as fs;

/// Writes a file under a temporary name in the same folder, syncs it and renames it.
///
/// Whoever looks at `path` sees the old content or the new, never a part of it, whatever happens
/// in between (a kill, a full disk, an error of `write`). After an error the temporary file is
/// removed; after a kill it stays, hidden and ending in `.tmp`, until [`remove_abandoned_of`] or
/// [`remove_abandoned`].
///
/// # Errors
/// What `write` returned, or the error of the file system, which names the file.
pub fn atomic_write(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = NewFile::create(path)?;
    write(&mut file)?;
    file.finish()
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
    let mut file = NewFile::create(path)?;
    write(&mut file)?;
    file.out.flush()?;
    file.rename()
}

/// A file that is being written: under a temporary name until [`NewFile::finish`], and removed when
/// dropped before.
#[derive(Debug)]
pub struct NewFile {
    out: BufWriter<fs::File>,
    temporary: PathBuf,
    path: PathBuf,
    named: bool,
}

impl NewFile {
    /// Begins the file that is to be `path`, or that the link there leads to.
    ///
    /// # Errors
    /// `path` names no file, its folder takes none, or what is there is no file
    /// ([`file_to_write`]).
    pub fn create(path: &Path) -> io::Result<Self> {
        let path = file_to_write(path)?;
        let (file, temporary) = temporary(&path, create_new)?;
        Ok(Self {
            out: BufWriter::with_capacity(1 << 18, file),
            temporary,
            path,
            named: false,
        })
    }

    /// Brings what is written to the disk, so that only the name is still to come.
    ///
    /// # Errors
    /// That of the file system.
    pub fn sync(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_all()
    }

    /// Brings the file to the disk and gives it its name.
    ///
    /// # Errors
    /// That of the file system; the temporary file is removed.
    pub fn finish(mut self) -> io::Result<()> {
        self.sync()?;
        self.rename()?;
        sync_folder(&self.path);
        Ok(())
    }

    fn rename(&mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.named = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.out.seek(to)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.named {
            // The first error is the one to report; a file that cannot be removed changes nothing.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Links to links that are followed, as many as Linux follows.
const MOST_LINKS: usize = 40;

/// The file that writing to `path` writes: `path` itself, or where the symbolic link there leads,
/// also to a file that is still to come. To give a new file the name would replace the link, or a
/// device such as `/dev/null` for every program of the machine.
///
/// # Errors
/// What is there is no file, or links lead in a circle. That the folder is missing shows only when
/// the file is made.
pub fn file_to_write(path: &Path) -> io::Result<PathBuf> {
    let refused = |found: &str, hint: &str| {
        let message = format!(
            "{}: expected a file to write, found {found}\n  hint: {hint}",
            path.display()
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    };
    let another = "give the name of a file";
    // First through all links: those of /dev/fd name pipes that have no path.
    if let Ok(found) = fs::metadata(path)
        && !found.is_file()
    {
        return match found.is_dir() {
            true => refused("a folder", another),
            false => refused("a device or pipe", another),
        };
    }
    let mut file = path.to_owned();
    for _ in 0..MOST_LINKS {
        let is_link = fs::symlink_metadata(&file).is_ok_and(|found| found.is_symlink());
        if !is_link {
            return Ok(file);
        }
        let leads_to = fs::read_link(&file)?;
        file = file.parent().unwrap_or(Path::new("")).join(leads_to);
    }
    refused("a link that leads to itself", "remove it")
}

/// A folder that this process alone writes, until it is dropped.
///
/// The lock is on the open file `.lock` in the folder, so it goes with the process, however that
/// ends; the file stays. Where the file system has no locks there is none.
#[derive(Debug)]
pub struct FolderLock {
    file: fs::File,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing the file would leave the lock to a process that another thread is just starting, which has
        // the file too until it runs its program.
        let _ = self.file.file().unlock();
    }
}

impl FolderLock {
    /// Locks a folder, which exists.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be made.
    pub fn take(folder: &Path) -> io::Result<Self> {
        Self::named(folder, ".lock")
    }

    /// As [`FolderLock::take`], for one of several jobs that share a folder.
    ///
    /// # Errors
    /// As [`FolderLock::take`].
    pub fn named(folder: &Path, name: &str) -> io::Result<Self> {
        let path = folder.join(name);
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false);
        let mut file = file.open(&path)?;
        match file.file().try_lock() {
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = io::Read::read_to_string(&mut file, &mut owner);
                let owner = match owner.trim() {
                    "" => String::new(),
                    number => format!(" (process {number})"),
                };
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!(
                        "{}: another process{owner} is writing there\n  \
                         hint: wait for it, stop it, or choose another folder",
                        folder.display()
                    ),
                ));
            }
            // Not every file system has locks.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        // For the message above; a full disk is no reason not to begin.
        let _ = file.set_len(0);
        let _ = write!(file, "{}", std::process::id());
        Ok(Self { file })
    }
}

impl FolderLock {
    /// Whether a process has the folder now.
    pub fn is_held(folder: &Path) -> bool {
        let file = fs::File::open(folder.join(".lock"));
        // Shared, so that several that look at a time do not take each other for a writer.
        file.is_ok_and(|file| {
            let held = matches!(file.file().try_lock_shared(), Err(TryLockError::WouldBlock));
            // See `drop`.
            let _ = file.file().unlock();
            held
        })
    }
}

/// Removes the temporary files that killed processes left in a folder; nothing where there is no
/// such folder.
///
/// For folders that one process writes: one of another machine that shares the folder would look
/// dead from here.
///
/// # Errors
/// The folder cannot be read, or a file cannot be removed.
pub fn remove_abandoned(folder: &Path) -> io::Result<()> {
    remove_abandoned_where(folder, |_| true)
}

/// As [`remove_abandoned`], of the file `path` alone: others of its folder may be at work there.
///
/// # Errors
/// As [`remove_abandoned`].
pub fn remove_abandoned_of(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Ok(());
    };
    let name = name.to_string_lossy();
    remove_abandoned_where(folder_of(path), |of| of == name_in_temporary(&name))
}

/// As [`remove_abandoned`], of those files whose names, as [`name_in_temporary`] has them, are
/// `ours`.
///
/// # Errors
/// As [`remove_abandoned`].
pub fn remove_abandoned_where(folder: &Path, ours: impl Fn(&str) -> bool) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((_, process, count)) = owner(&name).filter(|(of, ..)| ours(of)) else {
            continue;
        };
        let abandoned = match process == std::process::id() {
            // An earlier process had the number that this one has, as in containers.
            true => count >= COUNT.load(Ordering::Relaxed),
            false => !is_running(process, &entry)?,
        };
        if !abandoned {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_file() {
            fs::remove_file(entry.path())?;
        } else if kind.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Whether the process that left a file may still be at work on it.
fn is_running(process: u32, file: &fs::DirEntry) -> io::Result<bool> {
    let processes = Path::new("/proc");
    if processes.join("self").exists() {
        return Ok(processes.join(process.to_string()).exists());
    }
    // Elsewhere than on Linux, the time since the last byte has to tell.
    let quiet = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    Ok(quiet < Duration::from_secs(24 * 3600))
}

/// Bytes of a file's name that its temporary name begins with.
const MOST_OF_A_NAME: usize = 200;

/// Temporary files of this process so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The part of a file's name that the names of its temporary files have: all of it, but of a long
/// one the beginning, as most file systems take 255 bytes a name, and some count UTF-16 units.
pub fn name_in_temporary(name: &str) -> &str {
    &name[..name.floor_char_boundary(MOST_OF_A_NAME)]
}

/// Makes `.name.process-count.tmp` beside `path`: two processes, or two threads, never share one.
fn temporary<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    let name = path.file_name().ok_or_else(|| {
        let message = format!("`{}` does not name a file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    let process = std::process::id();
    let name = name.to_string_lossy();
    let name = name_in_temporary(&name);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{name}.{process}-{count}.tmp"));
        match make(&temporary) {
            // Left by an earlier process that had this one's number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return Ok((result?, temporary)),
        }
    }
}

/// Begins a new file.
fn create_new(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).open(path)
}

/// A folder beside a file, for files that are needed on the way to it. It is removed when dropped,
/// and after a kill as a temporary file of that file is.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    /// A new folder beside `file`.
    ///
    /// # Errors
    /// That of the file system.
    pub fn beside(file: &Path) -> io::Result<Self> {
        let ((), path) = temporary(file, |path| fs::create_dir(path))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What is left is of no use, and the first error is the one to report.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// File, process and count in the name of a temporary file.
fn owner(name: &str) -> Option<(&str, u32, u64)> {
    let inner = name.strip_prefix('.')?.strip_suffix(".tmp")?;
    let (of, owner) = inner.rsplit_once('.')?;
    let (process, count) = owner.split_once('-')?;
    Some((of, process.parse().ok()?, count.parse().ok()?))
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes the name of a file durable, after it was made or renamed. Not every file system can; then
/// the name is lost only where the whole system goes down.
pub fn sync_folder(path: &Path) {
    let folder = folder_of(path);
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

    /// A renamed file used to take the place of the link, and of a pipe or a device.
    #[cfg(unix)]
    #[test]
    fn links_stay_and_what_is_no_file_is_refused() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("other")).unwrap();
        fs::write(at("other/old"), "old").unwrap();
        for (link, to) in [("a", "other/old"), ("b", "a"), ("c", "other/to-come")] {
            symlink(to, at(link)).unwrap();
            atomic_write(&at(link), |w| w.write_all(link.as_bytes())).unwrap();
            assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink());
            assert_eq!(fs::read_to_string(at(link)).unwrap(), link);
        }
        assert_eq!(fs::read_to_string(at("other/old")).unwrap(), "b");
        assert_eq!(names(&at("other")).len(), 2);

        symlink("circle", at("circle")).unwrap();
        symlink("/dev/null", at("device")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, found) in [
            ("circle", "a link that leads to itself"),
            ("device", "a device or pipe"),
            ("socket", "a device or pipe"),
            ("other", "a folder"),
        ] {
            let error = atomic_write(&at(name), |_| Ok(())).unwrap_err().to_string();
            let expected = format!("{name}: expected a file to write, found {found}\n  hint: ");
            assert!(error.contains(&expected), "{error}");
        }
        let socket = fs::symlink_metadata(at("socket")).unwrap();
        assert!(!socket.is_file());
    }

    #[test]
    fn what_killed_processes_left_goes_and_everything_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let own = std::process::id();
        // No process has such a number; 1 is always there.
        let dead = u32::MAX;
        let kept = [
            format!(".a.{own}-0.tmp"),
            ".a.tmp".to_owned(),
            format!("a.{dead}-0.tmp"),
            format!(".a.{dead}-x.tmp"),
            "a".to_owned(),
            ".a.1-0.tmp".to_owned(),
        ];
        let gone = [
            format!(".a.{dead}-0.tmp"),
            format!(".step-8.safetensors.{dead}-12.tmp"),
            format!(".a.{own}-{}.tmp", u64::MAX),
        ];
        for name in kept.iter().chain(&gone) {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        // This process has begun a file, so its own count is above 0.
        let begun = NewFile::create(&folder.path().join("b")).unwrap();
        remove_abandoned(folder.path()).unwrap();
        for name in &kept {
            assert!(folder.path().join(name).exists(), "{name}");
        }
        for name in gone.iter().filter(|_| Path::new("/proc/self").exists()) {
            assert!(!folder.path().join(name).exists(), "{name}");
        }
        begun.finish().unwrap();
        assert!(folder.path().join("b").exists());
        remove_abandoned(&folder.path().join("absent")).unwrap();
    }

    #[test]
    fn what_was_left_of_one_file_or_folder_goes_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let long = "x".repeat(255);
        let left = |name: &str| at(&format!(".{}.{}-0.tmp", name_in_temporary(name), u32::MAX));
        for name in ["a.npy", "a.npy0", "a.npy.keys.txt", &long] {
            fs::write(left(name), b"").unwrap();
        }
        fs::create_dir(left("m.onnx")).unwrap();
        fs::write(left("m.onnx").join("model.onnx"), b"").unwrap();
        for name in ["a.npy", &long, "m.onnx"] {
            remove_abandoned_of(&at(name)).unwrap();
            assert!(!left(name).exists() || !Path::new("/proc/self").exists());
        }
        assert!(left("a.npy0").exists() && left("a.npy.keys.txt").exists());
        let own = TemporaryFolder::beside(&at("m.onnx")).unwrap();
        remove_abandoned_of(&at("m.onnx")).unwrap();
        let path = own.path().to_owned();
        assert!(path.is_dir());
        drop(own);
        assert!(!path.exists());
    }

    #[test]
    fn a_name_that_an_earlier_process_of_the_same_number_left_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        // Other tests count too, so the next name is one of many.
        let next = COUNT.load(Ordering::Relaxed);
        for count in next..next + 100 {
            let name = format!(".a.{}-{count}.tmp", std::process::id());
            fs::write(folder.path().join(name), b"left").unwrap();
        }
        atomic_write(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn names_as_long_as_the_file_system_takes_are_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x".repeat(255), "é".repeat(127), "日".repeat(85)] {
            let path = folder.path().join(&name);
            atomic_write(&path, |w| w.write_all(b"long")).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "long");
        }
        assert_eq!(names(folder.path()).len(), 3);
    }

    #[test]
    fn a_folder_has_one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        let other = FolderLock::named(folder.path(), ".lock-1").unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        let process = format!("another process (process {})", std::process::id());
        assert!(error.to_string().contains(&process), "{error}");
        assert!(FolderLock::is_held(folder.path()));
        drop((lock, other));
        assert!(!FolderLock::is_held(folder.path()));
        let lock = FolderLock::take(folder.path()).unwrap();
        // As a process that is being started has it.
        let _copy = lock.file.file().try_clone().unwrap();
        drop(lock);
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn a_file_begun_and_dropped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut file = NewFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        file.sync().unwrap();
        drop(file);
        assert!(names(folder.path()).is_empty());

        let mut file = NewFile::create(&path).unwrap();
        file.write_all(b"?bc").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"a").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
    }
}
