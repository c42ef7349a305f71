//! PyTorch's files: `.pth`, `.pt`, `.bin`.
//!
//! Two containers are read. Since PyTorch 1.6 `torch.save` writes a ZIP archive that is not
//! compressed: the entry `NAME/data.pkl` describes the values (`values`), and each storage is an
//! entry `NAME/data/KEY`. Before, it wrote a row of pickles (a magic number, a version, the
//! machine, the values, the keys of the storages), and then the storages one after another, each
//! behind its length.
//!
//! Nothing is executed: of the pickle, only plain values and tensors are built. Tensors are read
//! when they are asked for. What a file claims is checked against its length before anything of
//! that size is allocated: a storage lies inside the file, a tensor inside its storage, and all
//! tensors that are read together have no more than twice the bytes of the file.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};

use burn::tensor::f16;

use crate::state::HostTensor;
use clasp_data::pickle::Result;
use values::{Node, TensorView, TorchDtype, TorchPickle};

mod values;

/// The largest directory of a ZIP archive that is read.
const LARGEST_DIRECTORY: u64 = 64 << 20;
/// The first bytes of an old file: a pickle of the magic number 0x1950a86a20f9469cfc6c.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// How far into an old file the magic number may begin.
const MAGIC_WITHIN: usize = 24;

/// A place that tensors are read from.
pub trait TensorSource: Read + Seek + Send {}
impl<T: Read + Seek + Send> TensorSource for T {}

/// The tensors of a file of PyTorch.
pub struct TorchFile {
    source: Box<dyn TensorSource>,
    container: &'static str,
    views: BTreeMap<String, TensorView>,
    storages: BTreeMap<String, StorageBlock>,
    /// Bytes of tensors that may still be read.
    left: u64,
}

/// A storage's place in the file.
#[derive(Debug, Clone, Copy)]
struct StorageBlock {
    start: u64,
    bytes: u64,
    /// Of the whole storage; none where the writer left it out.
    checksum: Option<u32>,
}

/// Whether a file begins like one of PyTorch.
pub fn is_torch(beginning: &[u8]) -> bool {
    beginning.starts_with(b"PK\x03\x04") || is_legacy(beginning)
}

fn is_legacy(beginning: &[u8]) -> bool {
    let window = &beginning[..beginning.len().min(MAGIC_WITHIN + MAGIC.len())];
    window.windows(MAGIC.len()).any(|bytes| bytes == MAGIC)
}

impl TorchFile {
    /// Reads the description of a file.
    ///
    /// # Errors
    ///
    /// In words: it is no such file, it is broken, or it claims what it does not hold.
    pub fn open(mut source: Box<dyn TensorSource>) -> Result<Self> {
        let length = source.seek(SeekFrom::End(0)).map_err(in_words)?;
        let mut beginning = [0; MAGIC_WITHIN + MAGIC.len()];
        source.rewind().map_err(in_words)?;
        let found = read_up_to(&mut source, &mut beginning)?;
        let beginning = &beginning[..found];
        let (container, views, storages) = if beginning.starts_with(b"PK\x03\x04") {
            let (views, storages) = open_zip(&mut source, length)?;
            ("PyTorch, ZIP", views, storages)
        } else if is_legacy(beginning) {
            let (views, storages) = open_legacy(&mut source, length)?;
            ("PyTorch, before 1.6", views, storages)
        } else {
            return Err(
                "neither a ZIP archive nor an old file of PyTorch: save it with `torch.save(model.state_dict(), file)`"
                    .to_owned(),
            );
        };
        let views: BTreeMap<String, TensorView> = views.into_iter().collect();
        for (name, view) in &views {
            check(view, &storages).map_err(|problem| format!("`{name}`: {problem}"))?;
        }
        Ok(Self {
            source,
            container,
            views,
            storages,
            left: length.saturating_mul(2),
        })
    }

    /// The container, in words.
    pub fn container(&self) -> &'static str {
        self.container
    }

    /// Shapes of all tensors by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        // Sizes fit: each tensor lies inside a file.
        let shape = |view: &TensorView| view.shape.iter().map(|axis| *axis as usize).collect();
        self.views
            .iter()
            .map(|(name, view)| (name.clone(), shape(view)))
            .collect()
    }

    /// A tensor as 32-bit floats, row-major, or none of that name.
    ///
    /// # Errors
    ///
    /// In words: the file cannot be read or changed, its checksum is wrong, or its tensors claim
    /// more than it holds.
    pub fn read(&mut self, name: &str) -> Result<Option<HostTensor>> {
        let Some(view) = self.views.get(name).cloned() else {
            return Ok(None);
        };
        let block = check(&view, &self.storages)?;
        let (count, end) = (
            view.count().unwrap_or(u64::MAX),
            view.end().unwrap_or(u64::MAX),
        );
        let size = view.dtype.size();
        // A view may repeat its storage (stride 0) and tensors may share one: neither may outgrow
        // the file.
        if count > block.bytes / size {
            return Err(format!(
                "`{name}` repeats its storage: shape {:?}, {} numbers are stored",
                view.shape,
                block.bytes / size
            ));
        }
        let window = (end - view.offset) * size;
        self.left = self.left.checked_sub(window.max(count * size)).ok_or_else(|| {
            format!("`{name}` and the tensors before it overlap: together they claim more than twice the bytes of the file")
        })?;
        self.source
            .seek(SeekFrom::Start(block.start + view.offset * size))
            .map_err(in_words)?;
        let mut bytes = vec![0; window as usize];
        self.source.read_exact(&mut bytes).map_err(in_words)?;
        if let Some(expected) = block.checksum
            && window == block.bytes
            && crc32(&bytes) != expected
        {
            return Err(format!(
                "`{name}`: the checksum is wrong\nhint: copy or download the file again"
            ));
        }
        Ok(Some(HostTensor {
            shape: view.shape.iter().map(|axis| *axis as usize).collect(),
            data: gather(&view, &numbers(&bytes, view.dtype)),
        }))
    }
}

/// The storage of a tensor, which lies inside it.
fn check(view: &TensorView, storages: &BTreeMap<String, StorageBlock>) -> Result<StorageBlock> {
    let key = &view.storage.key;
    let block = storages
        .get(key)
        .ok_or_else(|| format!("storage `{key}` is not in the file"))?;
    // The pickle has checked the tensor against the length that it claims itself.
    let needed = view
        .end()
        .and_then(|end| end.checked_mul(view.dtype.size()))
        .ok_or("a size that no file has")?;
    if needed > block.bytes {
        return Err(format!(
            "needs {needed} bytes of storage `{key}`, which has {}",
            block.bytes
        ));
    }
    // An empty tensor may have one huge axis beside the empty one; no network has either.
    if view.count().is_none_or(|count| count == 0) && view.shape.iter().any(|axis| *axis > 1 << 32)
    {
        return Err(format!("shape {:?}", view.shape));
    }
    Ok(*block)
}

fn in_words(error: std::io::Error) -> String {
    error.to_string()
}

/// As many bytes as there are, up to the buffer's length.
fn read_up_to(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut found = 0;
    while found < buffer.len() {
        match source.read(&mut buffer[found..]).map_err(in_words)? {
            0 => break,
            count => found += count,
        }
    }
    Ok(found)
}

type TensorsAndStorages = (Vec<(String, TensorView)>, BTreeMap<String, StorageBlock>);

fn owned(tensors: Vec<(String, &TensorView)>) -> Vec<(String, TensorView)> {
    let pair = |(name, view): (String, &TensorView)| (name, view.clone());
    tensors.into_iter().map(pair).collect()
}

// --- ZIP ---

/// An entry of the directory.
struct ZipEntry {
    name: String,
    method: u16,
    checksum: u32,
    packed: u64,
    bytes: u64,
    header: u64,
}

fn open_zip(source: &mut Box<dyn TensorSource>, length: u64) -> Result<TensorsAndStorages> {
    let entries = directory(source, length)?;
    let roots = entries
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("data.pkl"));
    let Some(root) = roots.min_by_key(|root| root.len()) else {
        return Err("a ZIP archive without data.pkl: no file of `torch.save`".to_owned());
    };
    if entries
        .iter()
        .any(|entry| entry.name.strip_prefix(root) == Some("constants.pkl"))
    {
        return Err(
            "a TorchScript archive, which holds a program\nhint: in Python, `torch.save(torch.jit.load(file).state_dict(), out)`"
                .to_owned(),
        );
    }
    let named = |name: &str| {
        entries
            .iter()
            .find(|entry| entry.name.strip_prefix(root) == Some(name))
    };
    if let Some(entry) = named("byteorder") {
        let block = locate(source, entry, length)?;
        let mut order = [0; 6];
        source
            .seek(SeekFrom::Start(block.start))
            .map_err(in_words)?;
        let found = read_up_to(&mut source.take(block.bytes), &mut order)?;
        if &order[..found] != b"little" {
            return Err("numbers in big-endian order".to_owned());
        }
    }
    let Some(entry) = named("data.pkl") else {
        return Err("a ZIP archive without data.pkl".to_owned());
    };
    let block = locate(source, entry, length)?;
    source
        .seek(SeekFrom::Start(block.start))
        .map_err(in_words)?;
    let values = TorchPickle::read(&mut BufReader::new(source.take(block.bytes)))?;

    let tensors = owned(values.tensors()?);
    let data = format!("{root}data/");
    let by_key: BTreeMap<&str, &ZipEntry> = entries
        .iter()
        .filter_map(|entry| Some((entry.name.strip_prefix(&data)?, entry)))
        .collect();
    let mut storages = BTreeMap::new();
    for (name, view) in &tensors {
        let key = &view.storage.key;
        if storages.contains_key(key) {
            continue;
        }
        let entry = by_key
            .get(key.as_str())
            .ok_or_else(|| format!("`{name}`: storage `{key}` is not in the file"))?;
        storages.insert(key.clone(), locate(source, entry, length)?);
    }
    Ok((tensors, storages))
}

/// The entries of an archive, from its directory at the end.
fn directory(source: &mut Box<dyn TensorSource>, length: u64) -> Result<Vec<ZipEntry>> {
    const END: usize = 22;
    const LONGEST_COMMENT: u64 = 65_535;
    let tail = length.min(END as u64 + LONGEST_COMMENT + 20);
    source
        .seek(SeekFrom::Start(length - tail))
        .map_err(in_words)?;
    let mut bytes = Vec::new();
    source
        .take(tail)
        .read_to_end(&mut bytes)
        .map_err(in_words)?;
    let cut = "a ZIP archive that breaks off\nhint: copy or download the file again";
    let end = bytes
        .windows(END)
        .rposition(|window| window.starts_with(b"PK\x05\x06"))
        .ok_or(cut)?;
    let (mut count, mut size, mut start) = (
        u64::from(u16_at(&bytes, end + 10)?),
        u64::from(u32_at(&bytes, end + 12)?),
        u64::from(u32_at(&bytes, end + 16)?),
    );
    // The long form, for large files: a locator right before the end points at it.
    if let Some(locator) = end.checked_sub(20)
        && bytes[locator..].starts_with(b"PK\x06\x07")
    {
        let record = u64_at(&bytes, locator + 8)?;
        if record.checked_add(56).is_none_or(|end| end > length) {
            return Err(cut.to_owned());
        }
        source.seek(SeekFrom::Start(record)).map_err(in_words)?;
        let mut long = [0; 56];
        source.read_exact(&mut long).map_err(in_words)?;
        if !long.starts_with(b"PK\x06\x06") {
            return Err(cut.to_owned());
        }
        count = u64_at(&long, 32)?;
        size = u64_at(&long, 40)?;
        start = u64_at(&long, 48)?;
    }
    if size > LARGEST_DIRECTORY || start.checked_add(size).is_none_or(|end| end > length) {
        return Err(format!(
            "a ZIP directory of {size} bytes at {start}, in {length} bytes"
        ));
    }
    source.seek(SeekFrom::Start(start)).map_err(in_words)?;
    let mut bytes = Vec::new();
    source
        .take(size)
        .read_to_end(&mut bytes)
        .map_err(in_words)?;

    let mut entries = Vec::new();
    let mut place = 0;
    for _ in 0..count {
        if !bytes
            .get(place..)
            .is_some_and(|rest| rest.starts_with(b"PK\x01\x02"))
        {
            return Err(cut.to_owned());
        }
        let lengths = [28, 30, 32].map(|field| u16_at(&bytes, place + field));
        let [name, extra, comment] = lengths;
        let (name, extra, comment) = (
            usize::from(name?),
            usize::from(extra?),
            usize::from(comment?),
        );
        let name_at = place + 46;
        let extra_at = name_at + name;
        let next = extra_at + extra + comment;
        let (Some(name), Some(extra)) = (
            bytes.get(name_at..extra_at),
            bytes.get(extra_at..extra_at + extra),
        ) else {
            return Err(cut.to_owned());
        };
        let mut entry = ZipEntry {
            name: String::from_utf8_lossy(name).into_owned(),
            method: u16_at(&bytes, place + 10)?,
            checksum: u32_at(&bytes, place + 16)?,
            packed: u32_at(&bytes, place + 20)?.into(),
            bytes: u32_at(&bytes, place + 24)?.into(),
            header: u32_at(&bytes, place + 42)?.into(),
        };
        long_sizes(&mut entry, extra)?;
        entries.push(entry);
        place = next;
    }
    Ok(entries)
}

/// Sizes of 4 GB and more stand in an extra field, those that do not fit and only those.
fn long_sizes(entry: &mut ZipEntry, mut extra: &[u8]) -> Result<()> {
    while extra.len() >= 4 {
        let (tag, length) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let Some(field) = extra.get(4..4 + length) else {
            return Ok(());
        };
        if tag == 1 {
            let mut place = 0;
            for value in [&mut entry.bytes, &mut entry.packed, &mut entry.header] {
                if *value == u64::from(u32::MAX) {
                    *value = u64_at(field, place)?;
                    place += 8;
                }
            }
        }
        extra = &extra[4 + length..];
    }
    Ok(())
}

/// Where the bytes of an entry lie, all of them inside the file.
fn locate(
    source: &mut Box<dyn TensorSource>,
    entry: &ZipEntry,
    length: u64,
) -> Result<StorageBlock> {
    let name = &entry.name;
    if entry.method != 0 || entry.packed != entry.bytes {
        return Err(format!(
            "`{name}` is compressed, which no file of `torch.save` is\nhint: load it in Python and save it again"
        ));
    }
    let outside = || format!("`{name}` lies outside the file");
    if entry.header.checked_add(30).is_none_or(|end| end > length) {
        return Err(outside());
    }
    source
        .seek(SeekFrom::Start(entry.header))
        .map_err(in_words)?;
    let mut header = [0; 30];
    source.read_exact(&mut header).map_err(in_words)?;
    if !header.starts_with(b"PK\x03\x04") {
        return Err(outside());
    }
    let skipped = u64::from(u16_at(&header, 26)?) + u64::from(u16_at(&header, 28)?);
    let start = entry.header + 30 + skipped;
    if start
        .checked_add(entry.bytes)
        .is_none_or(|end| end > length)
    {
        return Err(outside());
    }
    Ok(StorageBlock {
        start,
        bytes: entry.bytes,
        checksum: Some(entry.checksum).filter(|checksum| *checksum != 0),
    })
}

fn bytes_at<const N: usize>(bytes: &[u8], place: usize) -> Result<[u8; N]> {
    bytes
        .get(place..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or_else(|| "a ZIP archive that breaks off".to_owned())
}

fn u16_at(bytes: &[u8], place: usize) -> Result<u16> {
    bytes_at(bytes, place).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], place: usize) -> Result<u32> {
    bytes_at(bytes, place).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], place: usize) -> Result<u64> {
    bytes_at(bytes, place).map(u64::from_le_bytes)
}

/// CRC-32 as ZIP has it, by a table of bytes.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = (value >> 1) ^ (0xEDB8_8320 & (value & 1).wrapping_neg());
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
    })
}

// --- Before PyTorch 1.6 ---

fn open_legacy(source: &mut Box<dyn TensorSource>, length: u64) -> Result<TensorsAndStorages> {
    source.rewind().map_err(in_words)?;
    let mut stream = BufReader::new(&mut *source);
    TorchPickle::read(&mut stream)?;
    let version = TorchPickle::read(&mut stream)?;
    if !matches!(version.root(), Node::Int(1001)) {
        return Err("an old file of PyTorch of another version than 1001".to_owned());
    }
    let machine = TorchPickle::read(&mut stream)?;
    if !matches!(machine.get("little_endian"), Some(Node::Bool(true))) {
        return Err("numbers in big-endian order, or no word about it".to_owned());
    }
    let values = TorchPickle::read(&mut stream)?;
    let tensors = owned(values.tensors()?);
    let keys = TorchPickle::read(&mut stream)?;
    let Node::List(items) = keys.root() else {
        return Err("no list of storages behind the values".to_owned());
    };
    let sizes: BTreeMap<&str, u64> = values
        .storages()
        .map(|storage| {
            (
                storage.key.as_str(),
                storage.dtype.map_or(1, TorchDtype::size),
            )
        })
        .collect();

    let mut start = stream.stream_position().map_err(in_words)?;
    drop(stream);
    let mut storages = BTreeMap::new();
    for item in items {
        let Some(key) = keys.node(*item).text() else {
            return Err("a storage without a name".to_owned());
        };
        // The size of its numbers stands in the values only; without, the place of the next is
        // unknown.
        let size = sizes
            .get(key)
            .ok_or_else(|| format!("storage `{key}` is listed and never used"))?;
        let outside = || format!("storage `{key}` lies outside the file");
        if start.checked_add(8).is_none_or(|end| end > length) {
            return Err(outside());
        }
        source.seek(SeekFrom::Start(start)).map_err(in_words)?;
        let mut count = [0; 8];
        source.read_exact(&mut count).map_err(in_words)?;
        let bytes = u64::from_le_bytes(count)
            .checked_mul(*size)
            .ok_or_else(outside)?;
        start += 8;
        if start.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(outside());
        }
        let block = StorageBlock {
            start,
            bytes,
            checksum: None,
        };
        storages.insert(key.to_owned(), block);
        start += bytes;
    }
    Ok((tensors, storages))
}

// --- Numbers ---

fn numbers(bytes: &[u8], dtype: TorchDtype) -> Vec<f32> {
    fn each<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let (chunks, _) = bytes.as_chunks::<N>();
        chunks.iter().map(|chunk| decode(*chunk)).collect()
    }
    match dtype {
        TorchDtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        TorchDtype::F32 => each(bytes, f32::from_le_bytes),
        TorchDtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        TorchDtype::Bf16 => each(bytes, |b: [u8; 2]| {
            f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
        }),
        TorchDtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        TorchDtype::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
        TorchDtype::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        TorchDtype::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        TorchDtype::U8 => each(bytes, |b| u8::from_le_bytes(b).into()),
    }
}

/// The numbers of a view in row-major order, out of those from its first to its last.
fn gather(view: &TensorView, stored: &[f32]) -> Vec<f32> {
    let mut expected = 1;
    let contiguous = view
        .shape
        .iter()
        .zip(&view.stride)
        .rev()
        .all(|(axis, stride)| {
            let follows = *axis == 1 || *stride == expected;
            expected = expected.saturating_mul(*axis);
            follows
        });
    if contiguous {
        return stored.to_vec();
    }
    let count = view.count().unwrap_or(0);
    let mut gathered = Vec::with_capacity(count as usize);
    let mut index = vec![0; view.shape.len()];
    let mut place = 0;
    for _ in 0..count {
        gathered.push(stored.get(place as usize).copied().unwrap_or(f32::NAN));
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            place += view.stride[axis];
            if index[axis] < view.shape[axis] {
                break;
            }
            place -= view.stride[axis] * view.shape[axis];
            index[axis] = 0;
        }
    }
    gathered
}

#[cfg(test)]
mod tests;
