//! Predictions for single images, and pictures of them.

use clasp_data::image::Rgb;
use serde_json::Value;

use super::{FinetunedModel, Objective};
use crate::TaskError;

/// What a fine-tuned model predicts for an image.
pub trait Predictor: Objective {
    /// The factor by which a person's box is enlarged before it is cut out of a photo.
    const CROP_MARGIN: f64 = 1.0;
    /// Whether a prediction for a whole image can be drawn.
    const IS_DRAWN: bool = true;

    /// The prediction for an image as JSON: a person's crop, or a scene for detection and search.
    ///
    /// # Errors
    /// [`TaskError::Device`], [`TaskError::NotFinite`].
    fn predict(&self, model: &FinetunedModel<Self>, image: &Rgb) -> Result<Value, TaskError>;

    /// A picture of a prediction.
    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb;

    /// Moves the prediction for a crop into the coordinates of the photo that it was cut out of, at
    /// `left` and `top`.
    fn in_photo(&self, prediction: Value, [left, top]: [f64; 2]) -> Value {
        let _ = (left, top);
        prediction
    }

    /// Draws the prediction for one person, [`Predictor::in_photo`], into a photo. `crop`: x, y,
    /// width, height.
    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], prediction: &Value) {
        let _ = crop;
        *photo = self.draw(photo, prediction);
    }
}
