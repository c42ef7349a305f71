//! The order in which a person is drawn: from the farthest limb to the nearest.

use clasp_data::Rng;

use super::figure::Figure;
use super::{hair, head, headwear};
use crate::canvas::Canvas;

impl Figure<'_> {
    /// Draws the person on picture and label map.
    pub fn draw(&self, canvas: &mut Canvas, rng: &mut Rng) {
        let facing = self.frame.yaw.cos();
        let near_arm = [0, 1].map(|i| self.arm_nearness(i) > -0.012);
        let pack_behind = facing > -0.25;

        if facing > -0.2 {
            hair::hair_fall(self, canvas);
        }
        for i in self.by_nearness(|i| self.arm_nearness(i)) {
            if !near_arm[i] {
                self.arm(canvas, i, rng);
            }
        }
        if pack_behind {
            self.backpack(canvas);
        }
        if self.side_bag_nearness().is_some_and(|n| n < -0.03) {
            self.side_bag(canvas);
        }
        for i in self.by_nearness(|i| {
            self.frame.near(self.skeleton.knees[i]) + self.frame.near(self.skeleton.hips[i])
        }) {
            self.leg(canvas, i, rng);
        }
        self.lower(canvas, rng);
        self.upper(canvas, rng);
        self.straps(canvas);
        head::neck(self, canvas);
        if self.side_bag_nearness().is_some_and(|n| n >= -0.03) {
            self.side_bag(canvas);
        }
        if facing <= -0.2 {
            self.hood(canvas);
        }
        if !pack_behind {
            self.backpack(canvas);
        }
        head::head(self, canvas, rng);
        if facing <= -0.2 {
            hair::hair_fall(self, canvas);
        }
        headwear::headwear(self, canvas);
        for i in self.by_nearness(|i| self.arm_nearness(i)) {
            if near_arm[i] {
                self.arm(canvas, i, rng);
            }
        }
    }
}
