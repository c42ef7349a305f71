//! Images in the pages of a Parquet file, by row: one page is decompressed at a time, and those
//! used last are kept, because neighbors share a page.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use fs_err as fs;
use parquet::basic::Compression;
use parquet::column::page::PageReader;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::error::SourceError;
use crate::contained::contained;
use crate::pages::Pages;

/// Largest page that is decompressed: writers of long rows make pages of hundreds of megabytes.
pub(super) const MOST_PAGE: usize = 1 << 30;

/// Bytes of decompressed pages that a source keeps; of a larger page only itself.
const KEPT: usize = 256 << 20;

/// Most pages that a source keeps, however small.
const MOST_KEPT: usize = 64;

/// The values of a page, none where the row has none.
pub(super) type PageValues = Vec<Option<ByteArray>>;

/// Where a page is in the file, header included.
#[derive(Clone, Debug)]
pub(super) struct PagePlace {
    /// Its column chunk, among those of its column.
    pub chunk: usize,
    pub offset: u64,
    pub length: usize,
    /// Rows that it holds, nulls included.
    pub rows: usize,
    /// Whether its values are places in the dictionary of its chunk.
    pub is_coded: bool,
}

/// A column of bytes of a file, as far as reading its pages needs it.
pub(super) struct ByteColumn {
    pub path: PathBuf,
    /// Its chunks, one a row group, with the dictionary of each.
    pub chunks: Vec<(ColumnChunkMetaData, Option<PagePlace>)>,
    pub pages: Vec<PagePlace>,
}

impl std::fmt::Debug for ByteColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ByteColumn({})", self.path.display())
    }
}

/// Why a page was not read.
#[derive(Clone, Debug)]
pub(super) enum PageFailure {
    /// The file could not be read, which may pass.
    Io(io::ErrorKind, String),
    /// Its content is at fault.
    Damaged(String),
}

impl PageFailure {
    /// As an error about a row.
    pub fn at_row(self, path: &Path, row: u64) -> SourceError {
        match self {
            PageFailure::Io(kind, message) => io::Error::new(kind, message).into(),
            PageFailure::Damaged(reason) => SourceError::Row {
                file: path.display().to_string(),
                row,
                reason,
            },
        }
    }
}

impl From<io::Error> for PageFailure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => PageFailure::Damaged(error.to_string()),
            kind => PageFailure::Io(kind, error.to_string()),
        }
    }
}

impl ByteColumn {
    /// Reads and decompresses one page.
    pub fn read(&self, page: &PagePlace) -> Result<PageValues, PageFailure> {
        let mut file = fs::File::open(&self.path)?;
        let (chunk, dictionary) = &self.chunks[page.chunk];
        let mut bytes = Vec::new();
        // A dictionary and a page of values are a chunk of their own.
        let dictionary = dictionary.iter().filter(|_| page.is_coded);
        for part in dictionary.chain([page]) {
            file.seek(SeekFrom::Start(part.offset))?;
            let start = bytes.len();
            bytes.resize(start + part.length, 0);
            file.read_exact(&mut bytes[start..])?;
        }
        // The Parquet reader is not ours, and the bytes are a user's.
        contained(|| decode(bytes.into(), chunk, page.rows))
            .unwrap_or_else(|| Err("the Parquet reader failed on its page".to_owned()))
            .map_err(PageFailure::Damaged)
    }
}

/// The values of a page of `rows` rows; `bytes` are its chunk's dictionary, if any, and itself.
fn decode(bytes: Bytes, chunk: &ColumnChunkMetaData, rows: usize) -> Result<PageValues, String> {
    let text = |error: parquet::errors::ParquetError| error.to_string();
    let length = i64::try_from(bytes.len()).map_err(|error| error.to_string())?;
    let values = i64::try_from(rows).map_err(|error| error.to_string())?;
    let reader: Box<dyn PageReader> = match chunk.compression() {
        codec @ (Compression::ZSTD(_) | Compression::UNCOMPRESSED) => {
            let is_zstd = codec != Compression::UNCOMPRESSED;
            Box::new(Pages::new(bytes, values, is_zstd).with_most(MOST_PAGE))
        }
        _ => {
            let chunk = chunk.clone().into_builder();
            let chunk = chunk
                .set_num_values(values)
                .set_total_compressed_size(length)
                .set_data_page_offset(0)
                .set_dictionary_page_offset(None)
                .build()
                .map_err(text)?;
            Box::new(SerializedPageReader::new(Arc::new(bytes), &chunk, rows, None).map_err(text)?)
        }
    };
    let descriptor = chunk.column_descr_ptr();
    let most = descriptor.max_def_level();
    let mut reader = ColumnReaderImpl::<ByteArrayType>::new(descriptor, reader);
    let (mut levels, mut found) = (Vec::new(), Vec::new());
    let mut done = 0;
    while done < rows {
        let levels = (most > 0).then_some(&mut levels);
        let (records, ..) = { reader.read_records(rows - done, levels, None, &mut found) }
            .map_err(|error| error.to_string())?;
        if records == 0 {
            return Err(format!("expected {rows} rows in its page, found {done}"));
        }
        done += records;
    }
    let mut found = found.into_iter();
    let values: PageValues = match most {
        0 => found.by_ref().map(Some).collect(),
        _ => { levels.iter() }
            .map(|level| if *level == most { found.next() } else { None })
            .collect(),
    };
    match values.len() == rows && found.next().is_none() {
        true => Ok(values),
        false => Err(format!(
            "expected {rows} rows in its page, found {}",
            values.len()
        )),
    }
}

/// A page that is or will be there; whoever needs it meanwhile waits.
type Slot = Arc<OnceLock<Result<Arc<PageValues>, PageFailure>>>;

struct KeptPage {
    /// Number of the file in the source, and of the page in the file.
    page: (usize, usize),
    slot: Slot,
    bytes: usize,
}

/// The pages that were used last, of all files of a source.
#[derive(Default)]
pub(super) struct PageCache {
    /// The one used last at the end.
    kept: Mutex<VecDeque<KeptPage>>,
}

impl std::fmt::Debug for PageCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageCache")
    }
}

impl PageCache {
    /// Page `page` of `column`, which is that of the source's file number `file`.
    pub fn get(
        &self,
        file: usize,
        column: &ByteColumn,
        page: usize,
    ) -> Result<Arc<PageValues>, PageFailure> {
        let key = (file, page);
        let slot = self.slot(key);
        let values = slot.get_or_init(|| column.read(&column.pages[page]).map(Arc::new));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|kept| kept.page == key);
        match (values, at) {
            (Ok(values), Some(at)) if kept[at].bytes == 0 => {
                // A dictionary's values are counted once for each row: too much rather than too
                // little.
                let sizes = values.iter().flatten().map(ByteArray::len);
                kept[at].bytes = sizes.sum::<usize>().max(1);
                let mut total: usize = kept.iter().map(|kept| kept.bytes).sum();
                while kept.len() > 1 && (total > KEPT || kept.len() > MOST_KEPT) {
                    total -= kept.pop_front().map_or(0, |oldest| oldest.bytes);
                }
            }
            // What failed may be there the next time.
            (Err(_), Some(at)) => drop(kept.remove(at)),
            _ => {}
        }
        values.clone()
    }

    fn slot(&self, page: (usize, usize)) -> Slot {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|kept| kept.page == page);
        let entry = found.and_then(|at| kept.remove(at)).unwrap_or(KeptPage {
            page,
            slot: Slot::default(),
            bytes: 0,
        });
        let slot = Arc::clone(&entry.slot);
        kept.push_back(entry);
        slot
    }
}
