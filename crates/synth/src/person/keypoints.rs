//! COCO's keypoints of a figure, with their visibility.

use super::figure::Figure;
use super::{group, head_geometry};
use crate::canvas::{Canvas, Point2};

/// COCO's 17 keypoints of a figure after everything is drawn: x, y and visibility, as in
/// [`crate::RenderedPerson`].
pub(crate) fn keypoints(figure: &Figure<'_>, canvas: &Canvas) -> [[f32; 3]; 17] {
    let s = &figure.skeleton;
    let body = [
        (s.shoulders, group::ARMS, group::TORSO),
        (s.elbows, group::ARMS, 0),
        (s.wrists, group::ARMS, 0),
        (s.hips, group::LEGS, group::HIPS),
        (s.knees, group::LEGS, group::HIPS),
        (s.ankles, group::LEGS, 0),
    ];
    let mut out = [[0.0; 3]; 17];
    let mut put = |index: usize, point: Point2, possible: bool, groups: &[u8]| {
        let mut p = tiny_skia::Point::from_xy(point[0], point[1]);
        canvas.transform.map_point(&mut p);
        let (x, y) = (p.x.floor() as i64, p.y.floor() as i64);
        if p.x < 0.0 || p.y < 0.0 || p.x >= canvas.width() || p.y >= canvas.height() {
            return;
        }
        // A point at the very edge of its limb still counts as visible.
        let seen = possible
            && [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
                .iter()
                .any(|(dx, dy)| {
                    let label = canvas.label_at(x + dx, y + dy);
                    label.instance == figure.instance && groups.contains(&label.group)
                });
        out[index] = [p.x, p.y, if seen { 2.0 } else { 1.0 }];
    };
    for (i, (point, facing)) in head_geometry::face_points(figure).into_iter().enumerate() {
        put(i, point, facing > -0.15, &[group::HEAD]);
    }
    for (k, (pair, own, also)) in body.into_iter().enumerate() {
        for (side, point) in pair.into_iter().enumerate() {
            let mut groups = vec![own + side as u8];
            if also != 0 {
                groups.push(also);
            }
            // The trunk hides the shoulder and the hip of the far side.
            let far = figure.frame.near(point)
                < figure.frame.near(if k < 3 { s.neck } else { s.pelvis }) - 0.04;
            let possible = !(far && also != 0 && figure.frame.yaw.cos().abs() < 0.5);
            put(
                5 + 2 * k + side,
                figure.frame.point(point),
                possible,
                &groups,
            );
        }
    }
    out
}
