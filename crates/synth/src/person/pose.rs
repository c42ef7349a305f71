//! Poses and the skeleton they give: joints in space, then in the picture.
//!
//! Body coordinates: x to the person's left, y up from the floor, z forward; unit = body height.

use std::f32::consts::PI;

use rand::RngExt;

use crate::canvas::Point2;
use crate::person::appearance::{BagKind, Body, Carried, SynthPerson, View};
use crate::sampling::jitter;
use crate::sampling::weighted;
use clasp_data::Rng;

/// A point in body coordinates.
pub(crate) type Point3 = [f32; 3];

/// Angles of one arm, radians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arm {
    /// Upper arm forward (+) or back (-).
    pub flex: f32,
    /// Upper arm away from the body.
    pub abduct: f32,
    /// Bend of the elbow.
    pub elbow: f32,
    /// How far the forearm turns inwards, 0 to 1.5.
    pub inward: f32,
}

/// Angles of one leg, radians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leg {
    /// Thigh forward (+) or back (-).
    pub flex: f32,
    /// Thigh away from the middle.
    pub abduct: f32,
    /// Bend of the knee.
    pub knee: f32,
    /// Toes down (+).
    pub toe: f32,
}

/// A pose; index 0 is the left limb, 1 the right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pose {
    /// Walking rather than standing.
    pub walking: bool,
    /// Arms.
    pub arms: [Arm; 2],
    /// Legs.
    pub legs: [Leg; 2],
    /// Lean of the trunk forward, radians.
    pub lean: f32,
    /// Lean of the trunk to the person's left, radians.
    pub sway: f32,
    /// Turn of the shoulders against the hips, radians.
    pub twist: f32,
    /// Turn of the head against the trunk, radians, positive to the person's left.
    pub head_turn: f32,
    /// Bow of the head forward, radians.
    pub head_bow: f32,
}

#[derive(Clone, Copy, PartialEq)]
enum ArmStyle {
    Swing,
    Hang,
    Pocket,
    Hip,
    Folded,
    Wave,
    Phone,
}

impl Pose {
    /// A pose that suits what the person carries.
    pub fn sample(person: &SynthPerson, rng: &mut Rng) -> Self {
        let walking = rng.random_bool(0.6);
        let mut pose = if walking {
            Pose::walking(rng.random::<f32>(), rng)
        } else {
            Pose::standing(rng)
        };
        let style = weighted(
            rng,
            &[
                (
                    if walking {
                        ArmStyle::Swing
                    } else {
                        ArmStyle::Hang
                    },
                    0.6,
                ),
                (ArmStyle::Pocket, 0.1),
                (ArmStyle::Hip, if walking { 0.02 } else { 0.1 }),
                (ArmStyle::Folded, if walking { 0.02 } else { 0.08 }),
                (ArmStyle::Wave, 0.04),
                (ArmStyle::Phone, 0.05),
            ],
        );
        for side in 0..2 {
            let one_sided = matches!(style, ArmStyle::Wave | ArmStyle::Phone | ArmStyle::Hip);
            if one_sided && side == 1 && rng.random_bool(0.8) {
                continue;
            }
            if let Some(arm) = style.arm(side, rng) {
                pose.arms[side] = arm;
            }
        }
        // The pose of a hand follows from what it holds.
        let near = usize::from(person.bag_side < 0.0);
        if let Some((kind, _)) = person.bag {
            let arm = &mut pose.arms[near];
            match kind {
                BagKind::Hand => {
                    *arm = Arm {
                        flex: jitter(rng, 0.05, 0.12),
                        abduct: 0.16,
                        elbow: 0.15,
                        inward: 0.1,
                    };
                }
                BagKind::Shoulder if arm.abduct < 0.2 => arm.abduct = 0.2,
                BagKind::Shoulder | BagKind::Backpack => {}
            }
        }
        if let Some((kind, _)) = person.carried {
            let far = 1 - near;
            let arm = match kind {
                Carried::Phone => ArmStyle::Phone.arm(far, rng),
                Carried::Umbrella => Some(Arm {
                    flex: 0.05,
                    abduct: 0.16,
                    elbow: jitter(rng, 0.5, 0.2),
                    inward: 0.1,
                }),
                Carried::Cup => Some(Arm {
                    flex: 0.1,
                    abduct: 0.14,
                    elbow: jitter(rng, 1.5, 0.2),
                    inward: 0.3,
                }),
                Carried::Paper => Some(Arm {
                    flex: 0.2,
                    abduct: 0.1,
                    elbow: jitter(rng, 1.3, 0.2),
                    inward: 0.5,
                }),
                Carried::Box => Some(Arm {
                    flex: 0.15,
                    abduct: 0.12,
                    elbow: 1.4,
                    inward: 0.25,
                }),
            };
            if let Some(arm) = arm {
                pose.arms[far] = arm;
                if kind == Carried::Box {
                    pose.arms[near] = arm;
                }
            }
        }
        pose.lean += person.body.stoop;
        pose
    }

    /// One instant of a walk; `phase` 0 to 1 is a whole stride.
    fn walking(phase: f32, rng: &mut Rng) -> Self {
        let stride = 0.2 + 0.28 * rng.random::<f32>();
        let leg = |phase: f32| {
            let swing = (phase * 2.0 * PI).sin();
            // The knee bends while the leg comes forward.
            let forward = (phase * 2.0 * PI).cos().max(0.0);
            let trailing = (-swing).max(0.0);
            Leg {
                flex: stride * swing + 0.12 * forward,
                abduct: 0.02,
                knee: 0.08 + 0.85 * stride * 2.0 * forward.powi(2) + 0.35 * trailing * stride * 2.0,
                toe: 0.9 * stride * trailing + 0.5 * stride * forward
                    - 0.25 * swing.max(0.0) * stride,
            }
        };
        let legs = [leg(phase), leg(phase + 0.5)];
        let swing = (phase * 2.0 * PI).sin();
        let reach = stride * (0.7 + 0.7 * rng.random::<f32>());
        let bend = 0.15 + 0.35 * rng.random::<f32>();
        let arm = |sign: f32| Arm {
            flex: sign * reach * swing,
            abduct: 0.1,
            elbow: bend + 0.4 * (sign * swing).max(0.0) * reach,
            inward: 0.15,
        };
        Pose {
            walking: true,
            arms: [arm(-1.0), arm(1.0)],
            legs,
            lean: jitter(rng, 0.04, 0.03),
            sway: 0.0,
            twist: -0.12 * swing,
            head_turn: jitter(rng, 0.0, 0.2),
            head_bow: jitter(rng, 0.06, 0.08),
        }
    }

    fn standing(rng: &mut Rng) -> Self {
        let weight = jitter(rng, 0.0, 0.05);
        let spread = 0.02 + 0.1 * rng.random::<f32>();
        let relaxed = rng.random_range(0..2usize);
        let leg = |side: usize, rng: &mut Rng| {
            let soft = if side == relaxed {
                0.3 * rng.random::<f32>()
            } else {
                0.0
            };
            Leg {
                flex: 0.6 * soft + jitter(rng, 0.0, 0.03),
                abduct: spread,
                knee: 0.04 + soft,
                toe: 0.25 * soft,
            }
        };
        let legs = [leg(0, rng), leg(1, rng)];
        let arm = |rng: &mut Rng| Arm {
            flex: jitter(rng, 0.0, 0.1),
            abduct: 0.09 + 0.08 * rng.random::<f32>(),
            elbow: 0.1 + 0.3 * rng.random::<f32>(),
            inward: 0.2,
        };
        Pose {
            walking: false,
            arms: [arm(rng), arm(rng)],
            legs,
            lean: jitter(rng, 0.0, 0.03),
            sway: weight,
            twist: jitter(rng, 0.0, 0.08),
            head_turn: jitter(rng, 0.0, 0.3),
            head_bow: jitter(rng, 0.08, 0.12),
        }
    }
}

impl ArmStyle {
    /// The arm's angles; `None` where the gait determines them.
    fn arm(self, side: usize, rng: &mut Rng) -> Option<Arm> {
        Some(match self {
            ArmStyle::Swing | ArmStyle::Hang => return None,
            ArmStyle::Pocket => Arm {
                flex: -0.25,
                abduct: 0.2,
                elbow: 0.62,
                inward: 0.35,
            },
            ArmStyle::Hip => Arm {
                flex: -0.35,
                abduct: 0.75,
                elbow: 1.5,
                inward: 1.25,
            },
            ArmStyle::Folded => Arm {
                flex: 0.3,
                abduct: 0.06,
                elbow: 1.6 + 0.1 * side as f32,
                inward: 1.25,
            },
            ArmStyle::Wave => Arm {
                flex: 0.3,
                abduct: jitter(rng, 1.1, 0.2),
                elbow: 1.7,
                inward: -0.6,
            },
            ArmStyle::Phone => Arm {
                flex: 0.35,
                abduct: 0.12,
                elbow: jitter(rng, 1.8, 0.25),
                inward: jitter(rng, 0.4, 0.1),
            },
        })
    }
}

/// Which side faces a camera for a turn of the body in radians (0 = towards the camera).
#[must_use]
pub fn view_of(yaw: f32) -> View {
    let degrees = yaw.to_degrees().rem_euclid(360.0);
    let away = degrees.min(360.0 - degrees);
    if away < 50.0 {
        View::Front
    } else if away > 130.0 {
        View::Back
    } else {
        View::Side
    }
}

/// A turn of the body that shows one side clearly.
pub(crate) fn sample_yaw(rng: &mut Rng) -> f32 {
    let view = weighted(
        rng,
        &[(View::Front, 0.37), (View::Side, 0.32), (View::Back, 0.31)],
    );
    yaw_for(view, rng)
}

/// A random turn of the body that shows `view`.
pub(crate) fn yaw_for(view: View, rng: &mut Rng) -> f32 {
    let side = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    let degrees = match view {
        View::Front => jitter(rng, 0.0, 38.0),
        View::Back => 180.0 + jitter(rng, 0.0, 38.0),
        View::Side => side * jitter(rng, 88.0, 24.0),
    };
    degrees.to_radians()
}

/// Joints in body coordinates; index 0 is the left one of a pair.
#[derive(Clone, Debug)]
pub(crate) struct Skeleton {
    pub pelvis: Point3,
    pub neck: Point3,
    /// Middle of the head.
    pub head: Point3,
    pub shoulders: [Point3; 2],
    pub elbows: [Point3; 2],
    pub wrists: [Point3; 2],
    /// Ends of the hands.
    pub hands: [Point3; 2],
    pub hips: [Point3; 2],
    pub knees: [Point3; 2],
    pub ankles: [Point3; 2],
    /// Directions of the feet, unit length.
    pub feet: [Point3; 2],
    /// Height of the head from chin to crown.
    pub head_height: f32,
}

pub(crate) fn add(a: Point3, b: Point3) -> Point3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

pub(crate) fn scaled(a: Point3, k: f32) -> Point3 {
    a.map(|v| v * k)
}

pub(crate) fn mix(a: Point3, b: Point3, t: f32) -> Point3 {
    [
        a[0] + (b[0] - a[0]) * t,
        a[1] + (b[1] - a[1]) * t,
        a[2] + (b[2] - a[2]) * t,
    ]
}

impl Skeleton {
    pub fn new(body: &Body, pose: &Pose) -> Self {
        let head_height = body.head;
        let hip_height = body.hip;
        let shoulder_height = 1.0 - head_height - 0.4 * head_height;
        let trunk = shoulder_height - hip_height;
        let pelvis = [0.0, hip_height, 0.0];
        let neck = add(
            pelvis,
            [
                trunk * pose.sway.sin(),
                trunk * pose.lean.cos() * pose.sway.cos(),
                trunk * pose.lean.sin(),
            ],
        );
        let shoulder_half = 0.104 * body.shoulders * (0.8 + 0.2 * body.build);
        let hip_half = 0.05 * body.hips;
        let bow = pose.lean * 0.6 + pose.head_bow;
        // The chin is 0.4 heads above the shoulder joints; the head sits a little forward.
        let head = add(
            neck,
            [
                0.0,
                0.9 * head_height * bow.cos(),
                0.9 * head_height * bow.sin() + 0.012,
            ],
        );
        let mut skeleton = Skeleton {
            pelvis,
            neck,
            head,
            shoulders: [neck; 2],
            elbows: [neck; 2],
            wrists: [neck; 2],
            hands: [neck; 2],
            hips: [pelvis; 2],
            knees: [pelvis; 2],
            ankles: [pelvis; 2],
            feet: [[0.0, 0.0, 1.0]; 2],
            head_height,
        };
        let leg = hip_height - 0.047;
        let (thigh, shin) = (leg * 0.5, leg * 0.5);
        let (upper, fore, hand) = (0.565 * trunk, 0.475 * trunk, 0.26 * trunk);
        for (i, side) in [1.0f32, -1.0].into_iter().enumerate() {
            let (sin, cos) = pose.twist.sin_cos();
            // The joint lies below the slope of the shoulder by the arm's radius.
            let shoulder = add(
                neck,
                [
                    side * shoulder_half * cos,
                    -0.02,
                    -side * shoulder_half * sin,
                ],
            );
            let arm = pose.arms[i];
            let elbow = add(
                shoulder,
                scaled(direction(arm.flex, arm.abduct, side), upper),
            );
            // The forearm bends in the plane of the upper arm's swing, then turns inwards.
            let bent = direction(arm.flex + arm.elbow, arm.abduct * 0.6, side);
            let inward = arm.inward * arm.elbow.min(1.0);
            let bent = normalize([bent[0] - side * inward, bent[1], bent[2]]);
            skeleton.shoulders[i] = shoulder;
            skeleton.elbows[i] = elbow;
            skeleton.wrists[i] = add(elbow, scaled(bent, fore));
            skeleton.hands[i] = add(elbow, scaled(bent, fore + hand));
            let hip = add(pelvis, [side * hip_half, 0.0, 0.0]);
            let bend = pose.legs[i];
            let knee = add(hip, scaled(direction(bend.flex, bend.abduct, side), thigh));
            let lower = direction(bend.flex - bend.knee, bend.abduct * 0.4, side);
            skeleton.hips[i] = hip;
            skeleton.knees[i] = knee;
            skeleton.ankles[i] = add(knee, scaled(lower, shin));
            let toe = bend.toe - 0.4 * (bend.flex - bend.knee).min(0.0);
            skeleton.feet[i] = normalize([side * 0.16, -toe.sin(), toe.cos()]);
        }
        // The lower foot stands on the floor.
        let floor = (0..2)
            .map(|i| skeleton.ankles[i][1] + 0.1 * skeleton.feet[i][1].min(0.0))
            .fold(f32::INFINITY, f32::min)
            - 0.045;
        skeleton.shift_up(-floor);
        skeleton
    }

    fn shift_up(&mut self, by: f32) {
        for point in [&mut self.pelvis, &mut self.neck, &mut self.head] {
            point[1] += by;
        }
        for pair in [
            &mut self.shoulders,
            &mut self.elbows,
            &mut self.wrists,
            &mut self.hands,
            &mut self.hips,
            &mut self.knees,
            &mut self.ankles,
        ] {
            for point in pair {
                point[1] += by;
            }
        }
    }
}

/// A limb's direction: straight down, swung forward by `flex` and away from the body by `abduct`.
fn direction(flex: f32, abduct: f32, side: f32) -> Point3 {
    [
        side * abduct.sin(),
        -flex.cos() * abduct.cos(),
        flex.sin() * abduct.cos(),
    ]
}

fn normalize(v: Point3) -> Point3 {
    let length = (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt().max(1e-6);
    v.map(|x| x / length)
}

/// From body coordinates to pixels: turn, parallel projection seen from slightly above, scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BodyProjection {
    /// Pixels per body height.
    pub scale: f32,
    /// Pixel of the floor point under the pelvis.
    pub foot: Point2,
    pub yaw: f32,
    /// Downward tilt of the camera, radians.
    pub pitch: f32,
}

impl BodyProjection {
    /// Pixel and nearness to the camera (in body heights, larger is nearer).
    pub fn project(&self, v: Point3) -> (Point2, f32) {
        let (sin, cos) = self.yaw.sin_cos();
        let x = v[0] * cos + v[2] * sin;
        let near = -v[0] * sin + v[2] * cos;
        let (down, level) = self.pitch.sin_cos();
        (
            [
                self.foot[0] + self.scale * x,
                self.foot[1] - self.scale * (v[1] * level - near * down),
            ],
            near,
        )
    }

    pub fn point(&self, v: Point3) -> Point2 {
        self.project(v).0
    }

    pub fn near(&self, v: Point3) -> f32 {
        self.project(v).1
    }

    /// Half the width in pixels of an ellipse with half axes `a` (sideways) and `b` (forward).
    pub fn half(&self, a: f32, b: f32) -> f32 {
        let (sin, cos) = self.yaw.sin_cos();
        self.scale * (a * cos).hypot(b * sin)
    }

    /// How far the same ellipse reaches towards the viewer, as a drop in pixels.
    pub fn bulge(&self, a: f32, b: f32) -> f32 {
        let (sin, cos) = self.yaw.sin_cos();
        self.scale * (a * sin).hypot(b * cos) * self.pitch.sin()
    }

    /// The same frame turned by a further `angle`.
    pub fn turned(self, angle: f32) -> BodyProjection {
        BodyProjection {
            yaw: self.yaw + angle,
            ..self
        }
    }
}
