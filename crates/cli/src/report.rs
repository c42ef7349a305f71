//! The report of a run: one self-contained HTML page, light and dark.

use askama::Template;
use base64::Engine;
use clasp_data::image::{Rgb, encode_jpeg, encode_png};

/// All that the page shows; `templates/report.html` lays it out.
#[derive(Template)]
#[template(path = "report.html")]
pub struct DemoReport {
    /// Heading.
    pub title: String,
    /// The line below it.
    pub subtitle: String,
    /// What this is, in a few paragraphs.
    pub introduction: Vec<String>,
    /// Every warning that the program printed.
    pub warnings: Vec<String>,
    /// Results.
    pub results: ResultTable,
    /// How the labels were made.
    pub label_note: String,
    /// Accuracy of the labels.
    pub label_accuracy: Option<ResultTable>,
    /// How to read the samples.
    pub sample_note: String,
    /// Colors of the part classes.
    pub legend: Vec<LegendEntry>,
    /// Images with their labels.
    pub samples: Vec<LabeledSample>,
    /// Views of one image.
    pub views: Vec<ViewPicture>,
    /// How to read the charts.
    pub chart_note: String,
    /// SVG charts.
    pub charts: Vec<String>,
    /// What the retrieved pictures show.
    pub retrieval_note: String,
    /// Queries and their matches.
    pub strips: Vec<QueryStrip>,
    /// What the feature pictures show.
    pub feature_note: String,
    /// Names of the feature pictures, left to right.
    pub feature_names: Vec<String>,
    /// Feature pictures.
    pub features: Vec<FeaturePicture>,
    /// Commands, recipe, seed, machine.
    pub made: String,
}

/// A table with a note below.
pub struct ResultTable {
    /// Column names.
    pub header: Vec<String>,
    /// Rows of cells.
    pub rows: Vec<Vec<Cell>>,
    /// How to read it.
    pub note: String,
}

/// A cell; the best of its column is set in bold.
#[derive(Clone, Default)]
pub struct Cell {
    /// Its text.
    pub text: String,
    /// The range over other runs, in small type; empty for none.
    pub range: String,
    /// Whether nothing in its column is better.
    pub best: bool,
}

impl Cell {
    /// A plain cell.
    pub fn plain(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }
}

/// A color of the legend.
pub struct LegendEntry {
    /// CSS color.
    pub color: String,
    /// Part class.
    pub name: String,
}

/// An image with its labels.
pub struct LabeledSample {
    /// Data URL of the image.
    pub image: String,
    /// Data URL of the image with its part map.
    pub parts: String,
    /// Attributes, a line each.
    pub attributes: Vec<String>,
}

/// A view of an image.
pub struct ViewPicture {
    /// Data URL.
    pub image: String,
    /// A local view.
    pub small: bool,
}

/// A query with the matches of each network.
pub struct QueryStrip {
    /// Data URL of the query.
    pub query: String,
    /// A row for each network.
    pub rows: Vec<Retrieved>,
}

/// The matches of a network for a query.
pub struct Retrieved {
    /// The network, and its average precision for this query.
    pub name: String,
    /// Matches, best first.
    pub found: Vec<MatchPicture>,
}

/// A match.
pub struct MatchPicture {
    /// Data URL.
    pub image: String,
    /// Whether it shows the person of the query.
    pub right: bool,
}

/// An image beside pictures of its features.
pub struct FeaturePicture {
    /// Data URLs.
    pub images: Vec<String>,
}

/// An image as a JPEG data URL: photos.
pub fn photo_url(image: &Rgb) -> String {
    url("jpeg", &encode_jpeg(image, 85))
}

/// An image as a PNG data URL: maps, whose edges must stay sharp.
pub fn map_url(image: &Rgb) -> String {
    url("png", &encode_png(image))
}

fn url(kind: &str, bytes: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("data:image/{kind};base64,{text}")
}
