//! Clothing Co-Parsing (Yang et al., CVPR 2014): its 59 clothing labels as part classes.

use crate::part;

/// Where a label of Clothing Co-Parsing lies among the part classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CcpPart {
    /// All of it is one class.
    One(u8),
    /// One piece for both halves: the upper body down to this share of its height, the lower body
    /// below.
    Split(f32),
    /// Bare skin: head, arms or legs, by where it lies.
    Skin,
    /// May be anywhere: not used.
    Unknown,
}

/// Maps a label's name (`labels.txt` of CCP) to a part class.
///
/// | class | labels |
/// |---|---|
/// | background | null |
/// | head | hair, hat, glasses, sunglasses, earrings; skin of the face and neck |
/// | upper body | shirts, tops, knitwear, jackets, coats, vests, tie, scarf, necklace, underwear above; the top of dress, romper, suit |
/// | arms | gloves, watch, bracelet, ring; skin beside the trunk |
/// | lower body | pants, jeans, shorts, skirt, belt, panties; the lower part of dress, romper, suit |
/// | legs | stockings, tights, leggings; skin of the legs |
/// | feet | all footwear, socks |
/// | bag | bag, purse, wallet |
/// | not used | accessories and names that CCP does not have |
#[must_use]
pub fn ccp_part(label: &str) -> CcpPart {
    CcpPart::One(match label {
        "null" => part::BACKGROUND,
        "hair" | "hat" | "glasses" | "sunglasses" | "earrings" => part::HEAD,
        "blazer" | "blouse" | "bodysuit" | "bra" | "cape" | "cardigan" | "coat" | "hoodie"
        | "intimate" | "jacket" | "jumper" | "necklace" | "scarf" | "shirt" | "sweater"
        | "sweatshirt" | "swimwear" | "t-shirt" | "tie" | "top" | "vest" => part::UPPER_BODY,
        "gloves" | "watch" | "bracelet" | "ring" => part::ARMS,
        "pants" | "jeans" | "shorts" | "skirt" | "belt" | "panties" => part::LOWER_BODY,
        "stockings" | "tights" | "leggings" => part::LEGS,
        "boots" | "clogs" | "flats" | "heels" | "loafers" | "pumps" | "sandals" | "shoes"
        | "sneakers" | "wedges" | "socks" => part::FEET,
        "bag" | "purse" | "wallet" => part::BAG,
        "dress" => return CcpPart::Split(0.42),
        "romper" => return CcpPart::Split(0.6),
        "suit" => return CcpPart::Split(0.5),
        "skin" => return CcpPart::Skin,
        _ => return CcpPart::Unknown,
    })
}

/// Part classes of a CCP mask; 255 where the label does not say.
///
/// mask: [height, width] label numbers, row-major; labels: the names by number. Skin is told apart
/// by connected regions: one that reaches the lowest 28 % of the person is legs; one that starts in
/// the uppermost fifth is the head down to where the upper garment begins and arms below; any other
/// is arms.
///
/// # Panics
/// If the mask is not a whole number of rows.
#[must_use]
pub fn ccp_parts(mask: &[u8], width: usize, labels: &[String]) -> Vec<u8> {
    assert!(
        width > 0 && mask.len().is_multiple_of(width),
        "{} labels do not fill rows of {width}",
        mask.len()
    );
    let kinds: Vec<CcpPart> = labels.iter().map(|name| ccp_part(name)).collect();
    let kind = |label: u8| {
        kinds
            .get(usize::from(label))
            .copied()
            .unwrap_or(CcpPart::Unknown)
    };
    // First and last row of each label, and of the person.
    let mut rows = [(usize::MAX, 0usize); 256];
    let (mut top, mut bottom, mut upper_top) = (usize::MAX, 0, usize::MAX);
    for (at, &label) in mask.iter().enumerate() {
        let y = at / width;
        let r = &mut rows[usize::from(label)];
        *r = (r.0.min(y), r.1.max(y));
        if kind(label) != CcpPart::One(part::BACKGROUND) {
            (top, bottom) = (top.min(y), bottom.max(y));
        }
        if matches!(
            kind(label),
            CcpPart::One(part::UPPER_BODY) | CcpPart::Split(_)
        ) {
            upper_top = upper_top.min(y);
        }
    }
    let person = bottom.saturating_sub(top) as f32;
    let mut parts: Vec<u8> = mask
        .iter()
        .enumerate()
        .map(|(at, &label)| match kind(label) {
            CcpPart::One(class) => class,
            CcpPart::Split(share) => {
                let (first, last) = rows[usize::from(label)];
                let waist = first as f32 + share * (last - first) as f32;
                if ((at / width) as f32) < waist {
                    part::UPPER_BODY
                } else {
                    part::LOWER_BODY
                }
            }
            CcpPart::Skin | CcpPart::Unknown => 255,
        })
        .collect();
    // Regions of skin, by flood fill over the four neighbors.
    let mut seen = vec![false; mask.len()];
    for (start, &label) in mask.iter().enumerate() {
        if seen[start] || kind(label) != CcpPart::Skin {
            continue;
        }
        let mut region = vec![start];
        seen[start] = true;
        let mut next = 0;
        while next < region.len() {
            let at = region[next];
            next += 1;
            let (x, y) = (at % width, at / width);
            let neighbors = [
                (x > 0).then(|| at - 1),
                (x + 1 < width).then_some(at + 1),
                (y > 0).then(|| at - width),
                (at + width < mask.len()).then_some(at + width),
            ];
            for other in neighbors.into_iter().flatten() {
                if !seen[other] && kind(mask[other]) == CcpPart::Skin {
                    seen[other] = true;
                    region.push(other);
                }
            }
        }
        let last = region.iter().map(|at| at / width).max().unwrap_or(0);
        let first = region.iter().map(|at| at / width).min().unwrap_or(0);
        for at in region {
            let y = (at / width) as f32;
            parts[at] = if last as f32 > top as f32 + 0.72 * person {
                part::LEGS
            } else if (first as f32) < top as f32 + 0.2 * person
                && y < upper_top as f32 + 0.03 * person
            {
                part::HEAD
            } else {
                part::ARMS
            };
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ccp_labels_become_parts() {
        let labels: Vec<String> = [
            "null",
            "hair",
            "skin",
            "shirt",
            "jeans",
            "shoes",
            "bag",
            "accessories",
            "dress",
        ]
        .map(String::from)
        .to_vec();
        // Rows from head to foot: hair, face, shirt with a hand beside it, jeans, shins, shoes.
        let rows: [[u8; 5]; 20] = std::array::from_fn(|y| match y {
            0..=1 => [0, 1, 1, 1, 0],
            2..=3 => [0, 0, 2, 0, 0],
            4..=9 => [2, 3, 3, 3, 0],
            10..=13 => [0, 4, 4, 4, 6],
            14..=17 => [0, 0, 2, 0, 7],
            _ => [0, 5, 5, 5, 0],
        });
        let mask: Vec<u8> = rows.concat();
        let parts = ccp_parts(&mask, 5, &labels);
        let at = |y: usize, x: usize| parts[y * 5 + x];
        assert_eq!((at(0, 1), at(2, 2)), (part::HEAD, part::HEAD));
        assert_eq!((at(5, 0), at(5, 1)), (part::ARMS, part::UPPER_BODY));
        assert_eq!((at(11, 1), at(11, 4)), (part::LOWER_BODY, part::BAG));
        assert_eq!(
            (at(15, 2), at(15, 4), at(19, 2), at(19, 0)),
            (part::LEGS, 255, part::FEET, part::BACKGROUND)
        );
        assert_eq!(ccp_part("dress"), CcpPart::Split(0.42));
        let dress: Vec<u8> = [8u8; 50].to_vec();
        let parts = ccp_parts(&dress, 5, &labels);
        assert_eq!((parts[0], parts[49]), (part::UPPER_BODY, part::LOWER_BODY));
        // Names beyond the list are not used.
        assert_eq!(ccp_parts(&[77], 1, &labels), [255]);
    }
}
