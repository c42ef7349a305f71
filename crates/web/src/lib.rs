//! `clasp serve`: models over HTTP, a gallery to search, and pages for a browser.
//!
//! | module | holds |
//! |---|---|
//! | [`server`] | starting, connections, stopping |
//! | [`limits`] | what a request may take |
//! | [`guard`] | who may ask: token, Host, Origin |
//! | `routes` | the routes and the pages |
//! | [`upload`] | the images of a request |
//! | [`params`] | parameters of a query string |
//! | [`problem`] | errors of requests, RFC 9457 |
//! | [`app`] | what the routes share |
//! | [`models`] | the models that are served |
//! | [`queue`] | images that wait, batches, the thread of the models |
//! | [`gallery`] | images with features, in memory and in an append-only file |
//! | [`labels`] | labels of the gallery's images: filters, part maps |
//! | [`counters`] | what `/metrics` shows |
//! | [`error`] | why the server does not start |
//!
//! Models compute on a thread of their own, searches on one at a time: the threads that talk to
//! clients never wait for either. Whatever a request claims is compared with [`limits`] first, and
//! nothing that it sends becomes a path.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod app;
pub mod counters;
pub mod error;
pub mod gallery;
pub mod guard;
pub mod labels;
pub mod limits;
pub mod models;
pub mod params;
pub mod problem;
pub mod queue;
mod routes;
pub mod server;
pub mod upload;

pub use error::ServeError;
pub use limits::ServeLimits;
pub use models::Compute;
pub use server::{ServeConfig, ServeEvents, serve};
