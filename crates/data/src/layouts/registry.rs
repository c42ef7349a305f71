//! The table of all layouts, which opening a dataset, `clasp data check` and docs/data.md read.
//!
//! To add a layout, write its file beside the others of its task, with a constant `LAYOUT`, and add
//! a line here; where a folder has several layouts of a task, the first in the table is opened.

use super::attributes::{pa100k, peta, rap2, splits};
use super::coco::{boxes, keypoints};
use super::layout::{Layout, OfficialCounts};
use super::parsing::{atr, ccp, cihp, lip};
use super::reid::{market1501, msmt17};
use super::search::{cuhk_sysu, prw};
use super::{attributes, parsing, reid, search};

/// All layouts.
pub static LAYOUTS: [Layout; 19] = [
    market1501::LAYOUT,
    msmt17::LAYOUT,
    reid::table::LAYOUT,
    attributes::table::LAYOUT,
    pa100k::LAYOUT,
    peta::LAYOUT,
    rap2::LAYOUT,
    splits::PICKLE,
    splits::JSON,
    parsing::table::LAYOUT,
    lip::LAYOUT,
    cihp::LAYOUT,
    atr::LAYOUT,
    ccp::LAYOUT,
    cuhk_sysu::LAYOUT,
    prw::LAYOUT,
    search::boxes::LAYOUT,
    keypoints::LAYOUT,
    boxes::LAYOUT,
];

/// The official counts of a dataset, where its authors give some.
pub fn official(dataset: &str) -> Option<&'static OfficialCounts> {
    let all = LAYOUTS.iter().flat_map(|layout| layout.official);
    all.into_iter().find(|official| official.dataset == dataset)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The table of docs/data.md.
    fn documentation() -> String {
        let mut text =
            "| task | layout | recognized by | official counts |\n|---|---|---|---|\n".to_owned();
        for layout in &LAYOUTS {
            let datasets: Vec<&str> = layout.official.iter().map(|set| set.dataset).collect();
            text += &format!(
                "| {} | {} | {} | {} |\n",
                layout.reader.task(),
                layout.name,
                layout.signature,
                datasets.join("; ")
            );
        }
        text
    }

    #[test]
    fn the_documentation_lists_every_layout() {
        let text = include_str!("../../../../docs/data.md");
        let table = text.split_once("<!-- layouts -->\n").unwrap().1;
        let table = table.split_once("<!-- end of layouts -->").unwrap().0;
        let expected = documentation();
        assert!(
            table == expected,
            "docs/data.md: expected between the markers:\n{expected}"
        );
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
        assert_eq!(names.len(), LAYOUTS.len());
        let sets = || LAYOUTS.iter().flat_map(|layout| layout.official);
        let datasets: BTreeSet<&str> = sets().map(|set| set.dataset).collect();
        assert_eq!(datasets.len(), sets().count());
        assert_eq!(official("PRW").unwrap().counts[1], ("test frames", 6_112));
        assert_eq!(official("another"), None);
    }
}
