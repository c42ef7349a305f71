//! Person search: frames with people, and who is searched for.

pub(crate) mod boxes;
pub(crate) mod cuhk_sysu;
mod dataset;
pub(crate) mod prw;

pub use dataset::{
    FramePerson, GallerySize, QueryGallery, SearchDataset, SearchFrame, SearchQuery,
};
