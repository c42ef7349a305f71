//! Places behind people: streets, walls, parks, rooms.

use rand::RngExt;
use tiny_skia::Transform;

use crate::canvas::{Canvas, ellipse, glow, gradient, open_line, polygon, rect};
use crate::color::gray;
use crate::color::{SHADOW, darker, dull, from_hsl, towards};
use crate::sampling::jitter;
use crate::scenery::objects::{car, house, lamp, pole, sign, tree};
use crate::scenery::place::{GroundPlane, PlaceKind};
use clasp_data::Rng;

/// Draws a place over the whole canvas. The same generator state gives the same place.
pub(crate) fn draw(
    canvas: &mut Canvas,
    place: PlaceKind,
    ground: GroundPlane,
    light: f32,
    rng: &mut Rng,
) {
    match place {
        PlaceKind::Street => street(canvas, ground, light, rng),
        PlaceKind::Wall => wall(canvas, ground, rng),
        PlaceKind::Park => park(canvas, ground, light, rng),
        PlaceKind::Indoor => indoor(canvas, ground, rng),
    }
}

fn full(canvas: &Canvas) -> [f32; 4] {
    // Larger than the picture, so that a tilt shows no corner.
    let (w, h) = (canvas.width(), canvas.height());
    [-0.3 * w, -0.3 * h, 1.6 * w, 1.6 * h]
}

fn sky(canvas: &mut Canvas, horizon: f32, rng: &mut Rng) {
    let [x, y, w, _] = full(canvas);
    let cloud = rng.random::<f32>();
    let top = towards([0.42, 0.6, 0.86], gray(0.78), cloud);
    let low = towards([0.8, 0.88, 0.95], gray(0.88), cloud);
    let shader = gradient(
        [0.0, 0.0],
        [0.0, horizon.max(1.0)],
        &[(0.0, top, 1.0), (1.0, low, 1.0)],
    );
    canvas.fill(rect(x, y, w, horizon - y + 2.0).as_ref(), shader, None);
}

/// The floor, darker towards the viewer's feet, with the joints of slabs in perspective.
fn floor(canvas: &mut Canvas, ground: GroundPlane, rgb: [f32; 3], slabs: bool) {
    let [x, _, w, h] = full(canvas);
    let bottom = canvas.height();
    let shader = gradient(
        [0.0, ground.horizon],
        [0.0, bottom.max(ground.horizon + 1.0)],
        &[(0.0, towards(rgb, gray(0.75), 0.25), 1.0), (1.0, rgb, 1.0)],
    );
    canvas.fill(rect(x, ground.horizon, w, h).as_ref(), shader, None);
    if !slabs {
        return;
    }
    let depth = bottom - ground.horizon;
    for k in 1..9 {
        let t = (k as f32 / 9.0).powi(2);
        let y = ground.horizon + depth * t * 1.1;
        canvas.line(
            open_line(&[[x, y], [x + w, y]]).as_ref(),
            SHADOW,
            0.18,
            0.4 + 0.9 * t,
            None,
        );
    }
    let center = canvas.width() / 2.0 + ground.pan;
    for k in -8..=8 {
        let at = center + k as f32 * ground.meter * 0.7;
        let far = center + k as f32 * ground.meter * 0.16;
        canvas.line(
            open_line(&[[far, ground.horizon], [at, bottom * 1.05]]).as_ref(),
            SHADOW,
            0.15,
            0.8,
            None,
        );
    }
}

fn street(canvas: &mut Canvas, ground: GroundPlane, _light: f32, rng: &mut Rng) {
    let [x, _, w, _] = full(canvas);
    let m = ground.meter;
    sky(canvas, ground.horizon, rng);
    let mut at = x + ground.pan - rng.random::<f32>() * 3.0 * m;
    while at < x + w {
        let width = rng.random_range(1.6..4.2) * m * 0.62;
        let height = rng.random_range(2.6..7.0) * m * 0.62;
        house(canvas, at, ground.horizon + 0.06 * m, width, height, rng);
        at += width + if rng.random_bool(0.25) { 0.5 * m } else { 0.0 };
    }
    let asphalt = gray(rng.random_range(0.34..0.62));
    floor(canvas, ground, asphalt, rng.random_bool(0.6));
    // A kerb, perhaps a line of the road.
    let kerb = ground.horizon + 0.12 * m;
    canvas.solid(rect(x, kerb, w, 0.05 * m).as_ref(), gray(0.72), None);
    canvas.glaze(
        rect(x, kerb + 0.05 * m, w, 0.03 * m).as_ref(),
        SHADOW,
        0.35,
        None,
    );
    for _ in 0..rng.random_range(0..4u32) {
        let cx = x + w * rng.random::<f32>() + ground.pan;
        match rng.random_range(0..4u32) {
            0 | 1 => car(
                canvas,
                cx,
                ground.horizon + 0.2 * m,
                rng.random_range(1.7..2.4) * m,
                None,
                rng,
            ),
            2 => tree(
                canvas,
                cx,
                ground.horizon + 0.1 * m,
                rng.random_range(1.8..3.2) * m,
                None,
                rng,
            ),
            _ => sign(
                canvas,
                cx,
                ground.horizon + 0.2 * m,
                rng.random_range(1.0..1.6) * m,
                rng,
            ),
        }
    }
    if rng.random_bool(0.4) {
        let cx = x + w * rng.random::<f32>() + ground.pan;
        lamp(canvas, cx, ground.horizon + 0.2 * m, 2.6 * m);
    }
}

fn wall(canvas: &mut Canvas, ground: GroundPlane, rng: &mut Rng) {
    let [x, y, w, _] = full(canvas);
    let m = ground.meter;
    let base = ground.horizon + 0.12 * m;
    let rgb = from_hsl(
        rng.random_range(0.0..60.0),
        rng.random_range(0.02..0.4),
        rng.random_range(0.35..0.75),
    );
    let shader = gradient(
        [x, 0.0],
        [x + w, 0.0],
        &[
            (0.0, rgb, 1.0),
            (
                rng.random_range(0.3..0.7),
                towards(rgb, [1.0; 3], 0.12),
                1.0,
            ),
            (1.0, darker(rgb, 0.8), 1.0),
        ],
    );
    canvas.fill(rect(x, y, w, base - y).as_ref(), shader, None);
    match rng.random_range(0..3u32) {
        0 => {
            // Bricks.
            let (bw, bh) = (0.24 * m, 0.085 * m);
            let rows = ((base - y) / bh) as usize;
            for r in 0..rows.min(80) {
                let ry = base - (r as f32 + 1.0) * bh;
                canvas.line(
                    open_line(&[[x, ry], [x + w, ry]]).as_ref(),
                    towards(rgb, [0.9; 3], 0.5),
                    0.5,
                    0.9,
                    None,
                );
                let shift = if r % 2 == 0 { 0.0 } else { 0.5 * bw } + ground.pan.rem_euclid(bw);
                let mut bx = x + shift;
                while bx < x + w {
                    canvas.line(
                        open_line(&[[bx, ry], [bx, ry + bh]]).as_ref(),
                        towards(rgb, [0.9; 3], 0.5),
                        0.45,
                        0.8,
                        None,
                    );
                    if rng.random_bool(0.1) {
                        canvas.glaze(rect(bx, ry, bw, bh).as_ref(), SHADOW, 0.14, None);
                    }
                    bx += bw;
                }
            }
        }
        1 => {
            // Panels.
            let step = rng.random_range(0.6..1.2) * m;
            let mut px = x + ground.pan.rem_euclid(step);
            while px < x + w {
                canvas.line(
                    open_line(&[[px, y], [px, base]]).as_ref(),
                    SHADOW,
                    0.3,
                    1.2,
                    None,
                );
                px += step;
            }
        }
        _ => {}
    }
    for _ in 0..rng.random_range(1..4u32) {
        let cx = x + w * rng.random::<f32>() + ground.pan;
        match rng.random_range(0..4u32) {
            0 => {
                // A door.
                let (dw, dh) = (0.9 * m, 2.0 * m);
                let rgb = dull(rng);
                canvas.solid(rect(cx, base - dh, dw, dh).as_ref(), rgb, None);
                canvas.line(
                    rect(cx, base - dh, dw, dh).as_ref(),
                    darker(rgb, 0.4),
                    0.9,
                    0.05 * m,
                    None,
                );
                canvas.solid(
                    ellipse([cx + 0.8 * dw, base - 0.5 * dh], 0.035 * m, 0.035 * m, 0.0).as_ref(),
                    [0.8, 0.7, 0.4],
                    None,
                );
            }
            1 => {
                // A window.
                let (dw, dh) = (
                    rng.random_range(0.7..1.5) * m,
                    rng.random_range(0.7..1.2) * m,
                );
                let top = base - 2.0 * m;
                canvas.solid(rect(cx, top, dw, dh).as_ref(), [0.3, 0.37, 0.44], None);
                canvas.glaze(
                    polygon(&[
                        [cx, top],
                        [cx + 0.6 * dw, top],
                        [cx + 0.1 * dw, top + dh],
                        [cx, top + dh],
                    ])
                    .as_ref(),
                    [1.0; 3],
                    0.18,
                    None,
                );
                canvas.line(
                    rect(cx, top, dw, dh).as_ref(),
                    [0.9; 3],
                    0.9,
                    0.05 * m,
                    None,
                );
            }
            2 => {
                // Posters.
                for k in 0..3 {
                    let rgb = from_hsl(
                        rng.random_range(0.0..360.0),
                        rng.random_range(0.2..0.7),
                        rng.random_range(0.35..0.8),
                    );
                    let (pw, ph) = (0.42 * m, 0.6 * m);
                    let px = cx + k as f32 * 0.5 * m;
                    canvas.solid(rect(px, base - 1.8 * m, pw, ph).as_ref(), rgb, None);
                    canvas.solid(
                        rect(px + 0.1 * pw, base - 1.7 * m, 0.8 * pw, 0.08 * ph).as_ref(),
                        towards(rgb, [1.0; 3], 0.7),
                        None,
                    );
                    canvas.solid(
                        ellipse([px + 0.5 * pw, base - 1.45 * m], 0.28 * pw, 0.2 * ph, 0.0)
                            .as_ref(),
                        darker(rgb, 0.6),
                        None,
                    );
                }
            }
            _ => pole(canvas, cx, base, 3.0 * m, 0.09 * m, None, gray(0.5)),
        }
    }
    let pavement = gray(rng.random_range(0.45..0.7));
    floor(
        canvas,
        GroundPlane {
            horizon: base,
            ..ground
        },
        pavement,
        rng.random_bool(0.7),
    );
    canvas.glaze(rect(x, base, w, 0.06 * m).as_ref(), SHADOW, 0.3, None);
}

fn park(canvas: &mut Canvas, ground: GroundPlane, light: f32, rng: &mut Rng) {
    let [x, _, w, _] = full(canvas);
    let m = ground.meter;
    sky(canvas, ground.horizon, rng);
    let hue = rng.random_range(75.0..115.0);
    // A far hedge.
    let mut hx = x;
    while hx < x + w {
        let r = rng.random_range(0.25..0.6) * m;
        let rgb = from_hsl(
            hue + jitter(rng, 0.0, 12.0),
            0.3,
            rng.random_range(0.24..0.4),
        );
        canvas.solid(
            ellipse([hx, ground.horizon - 0.3 * r], r, 0.8 * r, 0.0).as_ref(),
            rgb,
            None,
        );
        hx += r;
    }
    let grass = from_hsl(
        hue,
        rng.random_range(0.25..0.45),
        rng.random_range(0.3..0.45),
    );
    floor(canvas, ground, grass, false);
    let bottom = canvas.height() * 1.1;
    // A path that comes towards the viewer.
    let center = canvas.width() / 2.0 + ground.pan;
    let far = center + jitter(rng, 0.0, 1.5) * m;
    let (near_w, far_w) = (rng.random_range(0.8..2.0) * m, 0.15 * m);
    let sand = [0.72, 0.64, 0.52];
    let path = polygon(&[
        [far - far_w, ground.horizon],
        [far + far_w, ground.horizon],
        [center + near_w, bottom],
        [center - near_w, bottom],
    ]);
    canvas.solid(path.as_ref(), towards(sand, gray(0.6), rng.random()), None);
    for _ in 0..60 {
        let px = x + w * rng.random::<f32>();
        let t = rng.random::<f32>();
        let py = ground.horizon + (bottom - ground.horizon) * t * t;
        let size = (0.02 + 0.06 * t) * m;
        canvas.line(
            open_line(&[[px, py], [px + 0.3 * size, py - size]]).as_ref(),
            darker(grass, 0.6),
            0.4,
            0.8,
            None,
        );
    }
    for _ in 0..rng.random_range(1..4u32) {
        let cx = x + w * rng.random::<f32>() + ground.pan;
        let near = rng.random_range(0.05..0.5) * m;
        let height = rng.random_range(2.0..3.6) * m;
        canvas.glaze(
            ellipse(
                [cx - light * 0.3 * m, ground.horizon + near],
                0.7 * m,
                0.1 * m,
                0.0,
            )
            .as_ref(),
            SHADOW,
            0.3,
            None,
        );
        tree(canvas, cx, ground.horizon + near, height, None, rng);
    }
    if rng.random_bool(0.5) {
        // A bench.
        let (bx, by) = (
            x + w * rng.random::<f32>() + ground.pan,
            ground.horizon + 0.35 * m,
        );
        let wood = [0.5, 0.33, 0.2];
        for k in 0..3 {
            canvas.solid(
                rect(bx, by - (0.42 + 0.14 * k as f32) * m, 1.4 * m, 0.09 * m).as_ref(),
                wood,
                None,
            );
        }
        for u in [0.1, 1.2] {
            canvas.solid(
                rect(bx + u * m, by - 0.75 * m, 0.06 * m, 0.8 * m).as_ref(),
                gray(0.2),
                None,
            );
        }
    }
}

fn indoor(canvas: &mut Canvas, ground: GroundPlane, rng: &mut Rng) {
    let [x, y, w, _] = full(canvas);
    let m = ground.meter;
    let base = ground.horizon + 0.1 * m;
    let wall = from_hsl(
        rng.random_range(0.0..360.0),
        rng.random_range(0.02..0.2),
        rng.random_range(0.6..0.88),
    );
    let shader = gradient(
        [0.0, y],
        [0.0, base.max(y + 1.0)],
        &[
            (0.0, darker(wall, 0.85), 1.0),
            (0.6, wall, 1.0),
            (1.0, darker(wall, 0.9), 1.0),
        ],
    );
    canvas.fill(rect(x, y, w, base - y).as_ref(), shader, None);
    for _ in 0..rng.random_range(2..5u32) {
        let cx = x + w * rng.random::<f32>() + ground.pan;
        match rng.random_range(0..4u32) {
            0 => {
                // A shelf with goods.
                let (sw, sh) = (1.6 * m, 1.9 * m);
                let rgb = dull(rng);
                canvas.solid(
                    rect(cx, base - sh, sw, sh).as_ref(),
                    darker(rgb, 0.55),
                    None,
                );
                for row in 0..5 {
                    let sy = base - sh + (row as f32 + 1.0) * sh / 5.2;
                    let mut gx = cx + 0.05 * m;
                    while gx < cx + sw - 0.15 * m {
                        let gw = rng.random_range(0.07..0.16) * m;
                        let gh = rng.random_range(0.15..0.3) * m;
                        let goods = from_hsl(
                            rng.random_range(0.0..360.0),
                            rng.random_range(0.2..0.7),
                            rng.random_range(0.35..0.75),
                        );
                        canvas.solid(rect(gx, sy - gh, gw, gh).as_ref(), goods, None);
                        gx += gw + 0.02 * m;
                    }
                    canvas.solid(
                        rect(cx, sy, sw, 0.035 * m).as_ref(),
                        towards(rgb, [1.0; 3], 0.4),
                        None,
                    );
                }
            }
            1 => {
                // A glass door.
                let (dw, dh) = (1.3 * m, 2.2 * m);
                canvas.solid(
                    rect(cx, base - dh, dw, dh).as_ref(),
                    [0.72, 0.82, 0.86],
                    None,
                );
                canvas.line(
                    rect(cx, base - dh, dw, dh).as_ref(),
                    gray(0.35),
                    1.0,
                    0.05 * m,
                    None,
                );
                canvas.line(
                    open_line(&[[cx + 0.5 * dw, base - dh], [cx + 0.5 * dw, base]]).as_ref(),
                    gray(0.35),
                    1.0,
                    0.04 * m,
                    None,
                );
                canvas.glaze(
                    polygon(&[
                        [cx, base - dh],
                        [cx + 0.35 * dw, base - dh],
                        [cx, base - 0.4 * dh],
                    ])
                    .as_ref(),
                    [1.0; 3],
                    0.35,
                    None,
                );
            }
            2 => {
                // A picture.
                let rgb = dull(rng);
                canvas.solid(
                    rect(cx, base - 1.9 * m, 0.8 * m, 0.6 * m).as_ref(),
                    rgb,
                    None,
                );
                canvas.line(
                    rect(cx, base - 1.9 * m, 0.8 * m, 0.6 * m).as_ref(),
                    gray(0.2),
                    0.9,
                    0.04 * m,
                    None,
                );
            }
            _ => pole(
                canvas,
                cx,
                base + 0.1 * m,
                4.0 * m,
                0.32 * m,
                None,
                towards(wall, gray(0.5), 0.3),
            ),
        }
    }
    let tile = from_hsl(
        rng.random_range(15.0..60.0),
        rng.random_range(0.02..0.3),
        rng.random_range(0.45..0.78),
    );
    floor(
        canvas,
        GroundPlane {
            horizon: base,
            ..ground
        },
        tile,
        true,
    );
    canvas.solid(
        rect(x, base - 0.09 * m, w, 0.09 * m).as_ref(),
        darker(wall, 0.6),
        None,
    );
    // A reflection of the lamps.
    let shine = glow(
        [canvas.width() * rng.random::<f32>(), base + 0.5 * m],
        0.8 * m,
        &[(0.0, [1.0; 3], 0.3), (1.0, [1.0; 3], 0.0)],
        Transform::identity(),
    );
    let [_, _, _, h] = full(canvas);
    canvas.fill(rect(x, base, w, h).as_ref(), shine, None);
}
