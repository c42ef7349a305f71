//! Losses of pre-training: functions of tensors, with their state passed in and out.

pub mod attribute;
pub mod balance;
pub mod dino;
pub mod part;

pub use attribute::attribute_loss;
pub use balance::{balance_loss, expert_load};
pub use dino::{Temperatures, centre_update, dino_loss};
pub use part::part_loss;
