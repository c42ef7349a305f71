//! Predictions for photos: for the image as a whole, or for each person that a detector finds in it.
//! What `clasp predict` writes as a line.

use std::sync::Arc;

use clasp_data::image::{Rgb, crop};
use serde_json::{Map, Value, json};

use crate::TaskError;
use crate::task::{FinetunedModel, Predictor};

/// Finds people in a photo: `{"boxes": [{"bbox": [x, y, width, height], "score": …}, …]}`.
pub type Finder = Box<dyn Fn(&Rgb) -> Result<Value, TaskError> + Send + Sync>;

/// The fields of a line beside the image's key, and the picture if it is wanted.
pub type ImagePrediction = (Map<String, Value>, Option<Rgb>);

/// A finder of people by a model of detection or search.
pub fn finder_of<T: Predictor>(model: Arc<FinetunedModel<T>>) -> Finder {
    Box::new(move |photo| model.task.predict(&model, photo))
}

/// The prediction for the image as a whole: `{"prediction": …}`.
///
/// # Errors
/// [`TaskError::Device`], [`TaskError::NotFinite`].
pub fn of_image<T: Predictor>(
    model: &FinetunedModel<T>,
    image: &Rgb,
    draw: bool,
) -> Result<ImagePrediction, TaskError> {
    let prediction = model.task.predict(model, image)?;
    let picture = draw.then(|| model.task.draw(image, &prediction));
    let fields = [("prediction".to_owned(), prediction)];
    Ok((Map::from_iter(fields), picture))
}

/// A prediction for each person that is found in a photo: `{"people": [{"bbox": …, "score": …,
/// "crop": …, "prediction": …}, …]}`.
///
/// # Errors
/// [`TaskError::Device`], [`TaskError::NotFinite`].
pub fn of_people<T: Predictor>(
    model: &FinetunedModel<T>,
    people: &Finder,
    photo: &Rgb,
    draw: bool,
) -> Result<ImagePrediction, TaskError> {
    let found = people(photo)?;
    let mut picture = draw.then(|| photo.clone());
    let mut people_found = Vec::new();
    for one in found["boxes"].as_array().into_iter().flatten() {
        let Some(place) = cut(&one["bbox"], T::CROP_MARGIN, photo) else {
            continue;
        };
        let prediction = model.task.predict(model, &crop(photo, place))?;
        let at = [place[0] as f64, place[1] as f64];
        let prediction = model.task.in_photo(prediction, at);
        if let Some(picture) = &mut picture {
            model.task.draw_person(picture, place, &prediction);
        }
        people_found.push(json!({
            "bbox": one["bbox"],
            "score": one["score"],
            "crop": place,
            "prediction": prediction,
        }));
    }
    let fields = [("people".to_owned(), people_found.into())];
    Ok((Map::from_iter(fields), picture))
}

/// The pixels x, y, width, height of a box enlarged by `margin`, as far as they lie in the photo.
fn cut(bbox: &Value, margin: f64, photo: &Rgb) -> Option<[usize; 4]> {
    let number = |at: usize| bbox[at].as_f64();
    let span = |start: f64, length: f64, size: usize| {
        let more = length * (margin - 1.0) / 2.0;
        let from = (start - more).floor().clamp(0.0, size as f64) as usize;
        let to = (start + length + more).ceil().clamp(0.0, size as f64) as usize;
        (to > from).then_some((from, to - from))
    };
    let (x, width) = span(number(0)?, number(2)?, photo.width)?;
    let (y, height) = span(number(1)?, number(3)?, photo.height)?;
    Some([x, y, width, height])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_enlarged_and_stays_in_the_photo() {
        let photo = Rgb::filled(100, 50, [0; 3]);
        assert_eq!(
            cut(&json!([10.0, 10.0, 20.0, 20.0]), 1.5, &photo),
            Some([5, 5, 30, 30])
        );
        assert_eq!(
            cut(&json!([-10.0, 40.0, 30.0, 40.0]), 1.0, &photo),
            Some([0, 40, 20, 10])
        );
        assert_eq!(cut(&json!([200.0, 0.0, 5.0, 5.0]), 1.0, &photo), None);
        assert_eq!(cut(&json!(["x"]), 1.0, &photo), None);
    }
}
