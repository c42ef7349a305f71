//! A picture and a label map of the same geometry, drawn at once.

use tiny_skia::{
    BlendMode, Color, FillRule, FilterQuality, GradientStop, LineCap, LineJoin, LinearGradient,
    Mask, Paint, Path, PathBuilder, Pattern, Pixmap, Point, RadialGradient, Shader, SpreadMode,
    Stroke, Transform,
};

use clasp_data::image::Rgb;

/// A point in pixels, x to the right and y down.
pub(crate) type Point2 = [f32; 2];

/// Label of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PixelLabel {
    /// Part class.
    pub part: u8,
    /// Number of the person, from 1; 0 = none.
    pub instance: u8,
    /// Which limb or thing of the person: see `figure::group`.
    pub group: u8,
}

impl PixelLabel {
    /// No person: the background, an occluder, a carried object.
    pub const BACKGROUND: PixelLabel = PixelLabel {
        part: 0,
        instance: 0,
        group: 0,
    };
}

pub(crate) struct Canvas {
    pub color: Pixmap,
    labels: Pixmap,
    /// Applied to every path: the camera's tilt.
    pub transform: Transform,
}

pub(crate) fn rgba(rgb: [f32; 3], alpha: f32) -> Color {
    let [r, g, b] = rgb.map(|v| v.clamp(0.0, 1.0));
    Color::from_rgba(r, g, b, alpha.clamp(0.0, 1.0)).unwrap_or(Color::BLACK)
}

fn paint(shader: Shader<'_>) -> Paint<'_> {
    Paint {
        shader,
        anti_alias: true,
        ..Paint::default()
    }
}

impl Canvas {
    pub fn new(height: usize, width: usize) -> Self {
        let sheet = || {
            assert!(
                (1..=8192).contains(&height) && (1..=8192).contains(&width),
                "a drawing is 1 to 8192 pixels high and wide, not {height}x{width}"
            );
            match Pixmap::new(width as u32, height as u32) {
                Some(sheet) => sheet,
                None => unreachable!("sizes were checked: {height}x{width}"),
            }
        };
        let mut canvas = Canvas {
            color: sheet(),
            labels: sheet(),
            transform: Transform::identity(),
        };
        canvas.color.fill(Color::BLACK);
        canvas.labels.fill(Color::BLACK);
        canvas
    }

    pub fn height(&self) -> f32 {
        self.color.height() as f32
    }

    pub fn width(&self) -> f32 {
        self.color.width() as f32
    }

    /// The label at a pixel; background outside the picture.
    pub fn label_at(&self, x: i64, y: i64) -> PixelLabel {
        let (width, height) = (
            i64::from(self.labels.width()),
            i64::from(self.labels.height()),
        );
        if x < 0 || y < 0 || x >= width || y >= height {
            return PixelLabel::BACKGROUND;
        }
        let at = (y * width + x) as usize * 4;
        let data = self.labels.data();
        PixelLabel {
            part: data[at],
            instance: data[at + 1],
            group: data[at + 2],
        }
    }

    /// Every pixel's label, row-major.
    pub fn labels(&self) -> impl Iterator<Item = PixelLabel> + '_ {
        self.labels.data().chunks_exact(4).map(|p| PixelLabel {
            part: p[0],
            instance: p[1],
            group: p[2],
        })
    }

    /// Tight box and number of pixels of one person on the label map.
    pub fn visible_box(&self, instance: u8) -> ([f32; 4], u32) {
        let width = self.width() as usize;
        let (mut x0, mut y0, mut x1, mut y1, mut area) = (usize::MAX, usize::MAX, 0, 0, 0u32);
        for (at, label) in self.labels().enumerate() {
            if label.instance == instance {
                let (x, y) = (at % width, at / width);
                (x0, y0, x1, y1) = (x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1));
                area += 1;
            }
        }
        if area == 0 {
            return ([0.0; 4], 0);
        }
        (
            [x0 as f32, y0 as f32, (x1 - x0) as f32, (y1 - y0) as f32],
            area,
        )
    }

    /// The picture without its (opaque) alpha.
    pub fn rgb(&self) -> Rgb {
        let pixels = self
            .color
            .data()
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect();
        Rgb {
            width: self.color.width() as usize,
            height: self.color.height() as usize,
            pixels,
        }
    }

    /// Fills a shape and gives its pixels a label (no label: a layer of light or ornament).
    pub fn fill(&mut self, path: Option<&Path>, shader: Shader<'_>, label: Option<PixelLabel>) {
        self.fill_in(path, shader, label, None);
    }

    /// The same within a mask. Labels ignore the mask.
    pub fn fill_in(
        &mut self,
        path: Option<&Path>,
        shader: Shader<'_>,
        label: Option<PixelLabel>,
        mask: Option<&Mask>,
    ) {
        let Some(path) = path else { return };
        self.color.fill_path(
            path,
            &paint(shader),
            FillRule::Winding,
            self.transform,
            mask,
        );
        if let Some(label) = label {
            let flat = Paint {
                shader: Shader::SolidColor(Color::from_rgba8(
                    label.part,
                    label.instance,
                    label.group,
                    255,
                )),
                anti_alias: false,
                blend_mode: BlendMode::Source,
                ..Paint::default()
            };
            self.labels
                .fill_path(path, &flat, FillRule::Winding, self.transform, None);
        }
    }

    /// Fills with one color.
    pub fn solid(&mut self, path: Option<&Path>, rgb: [f32; 3], label: Option<PixelLabel>) {
        self.fill(path, Shader::SolidColor(rgba(rgb, 1.0)), label);
    }

    /// A translucent layer of one color, perhaps within a mask.
    pub fn glaze(&mut self, path: Option<&Path>, rgb: [f32; 3], alpha: f32, mask: Option<&Mask>) {
        self.fill_in(path, Shader::SolidColor(rgba(rgb, alpha)), None, mask);
    }

    /// An open or closed line.
    pub fn line(
        &mut self,
        path: Option<&Path>,
        rgb: [f32; 3],
        alpha: f32,
        width: f32,
        mask: Option<&Mask>,
    ) {
        let Some(path) = path else { return };
        let stroke = Stroke {
            width: width.max(0.3),
            line_cap: LineCap::Round,
            line_join: LineJoin::Round,
            ..Stroke::default()
        };
        let paint = paint(Shader::SolidColor(rgba(rgb, alpha)));
        self.color
            .stroke_path(path, &paint, &stroke, self.transform, mask);
    }

    /// A mask that lets through the inside of a shape.
    pub fn mask(&self, path: Option<&Path>) -> Option<Mask> {
        let mut mask = Mask::new(self.color.width(), self.color.height())?;
        mask.fill_path(path?, FillRule::Winding, true, self.transform);
        Some(mask)
    }
}

/// Color stops along a straight line from `a` to `b`.
pub(crate) fn gradient(a: Point2, b: Point2, stops: &[(f32, [f32; 3], f32)]) -> Shader<'static> {
    let list = stops
        .iter()
        .map(|&(at, rgb, alpha)| GradientStop::new(at, rgba(rgb, alpha)))
        .collect();
    LinearGradient::new(
        Point::from_xy(a[0], a[1]),
        Point::from_xy(b[0], b[1]),
        list,
        SpreadMode::Pad,
        Transform::identity(),
    )
    .unwrap_or(Shader::SolidColor(Color::TRANSPARENT))
}

/// Color stops outwards from a point.
pub(crate) fn glow(
    center: Point2,
    radius: f32,
    stops: &[(f32, [f32; 3], f32)],
    transform: Transform,
) -> Shader<'static> {
    let list = stops
        .iter()
        .map(|&(at, rgb, alpha)| GradientStop::new(at, rgba(rgb, alpha)))
        .collect();
    let center = Point::from_xy(center[0], center[1]);
    RadialGradient::new(
        center,
        0.0,
        center,
        radius.max(0.01),
        list,
        SpreadMode::Pad,
        transform,
    )
    .unwrap_or(Shader::SolidColor(Color::TRANSPARENT))
}

/// A tile that repeats, laid with the given transform.
pub(crate) fn tiled(tile: &Pixmap, transform: Transform) -> Shader<'_> {
    Pattern::new(
        tile.as_ref(),
        SpreadMode::Repeat,
        FilterQuality::Bilinear,
        1.0,
        transform,
    )
}

pub(crate) fn polygon(points: &[Point2]) -> Option<Path> {
    let mut path = PathBuilder::with_capacity(points.len() + 1, points.len());
    for (i, p) in points.iter().enumerate() {
        if i == 0 {
            path.move_to(p[0], p[1])
        } else {
            path.line_to(p[0], p[1])
        }
    }
    path.close();
    path.finish()
}

pub(crate) fn open_line(points: &[Point2]) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, p) in points.iter().enumerate() {
        if i == 0 {
            path.move_to(p[0], p[1])
        } else {
            path.line_to(p[0], p[1])
        }
    }
    path.finish()
}

pub(crate) fn rect(x: f32, y: f32, width: f32, height: f32) -> Option<Path> {
    polygon(&[
        [x, y],
        [x + width, y],
        [x + width, y + height],
        [x, y + height],
    ])
}

/// An ellipse turned by `angle` radians.
pub(crate) fn ellipse(center: Point2, rx: f32, ry: f32, angle: f32) -> Option<Path> {
    const STEPS: usize = 20;
    let (sin, cos) = angle.sin_cos();
    let points: Vec<Point2> = (0..STEPS)
        .map(|i| {
            let t = i as f32 / STEPS as f32 * std::f32::consts::TAU;
            let (x, y) = (rx * t.cos(), ry * t.sin());
            [center[0] + x * cos - y * sin, center[1] + x * sin + y * cos]
        })
        .collect();
    polygon(&points)
}

/// Value of the Catmull-Rom curve through `values` at `place` (0 = first, 1 = second, ...).
fn spline(values: &[f32], place: f32) -> f32 {
    let last = values.len() - 1;
    let i = (place as usize).min(last.saturating_sub(1));
    let t = place - i as f32;
    let at = |k: isize| values[(i as isize + k).clamp(0, last as isize) as usize];
    let (a, b, c, d) = (at(-1), at(0), at(1), at(2));
    let (t2, t3) = (t * t, t * t * t);
    0.5 * (2.0 * b
        + (c - a) * t
        + (2.0 * a - 5.0 * b + 4.0 * c - d) * t2
        + (3.0 * b - a - 3.0 * c + d) * t3)
}

/// The smooth curve through points, sampled `steps` times between neighbors.
pub(crate) fn smooth(points: &[Point2], steps: usize) -> Vec<Point2> {
    if points.len() < 3 {
        return points.to_vec();
    }
    let xs: Vec<f32> = points.iter().map(|p| p[0]).collect();
    let ys: Vec<f32> = points.iter().map(|p| p[1]).collect();
    let count = (points.len() - 1) * steps;
    (0..=count)
        .map(|i| {
            let place = i as f32 / steps as f32;
            [spline(&xs, place), spline(&ys, place)]
        })
        .collect()
}

/// A limb: a smooth tube through points with a radius at each, round at both ends unless cut.
pub(crate) fn tube(points: &[(Point2, f32)], round_start: bool, round_end: bool) -> Option<Path> {
    const STEPS: usize = 5;
    let xs: Vec<f32> = points.iter().map(|p| p.0[0]).collect();
    let ys: Vec<f32> = points.iter().map(|p| p.0[1]).collect();
    let rs: Vec<f32> = points.iter().map(|p| p.1).collect();
    let count = (points.len() - 1) * STEPS;
    let mut left = Vec::with_capacity(2 * count + 12);
    let mut right = Vec::with_capacity(count + 1);
    let mut first = [0.0, 1.0];
    let mut last = first;
    for i in 0..=count {
        let place = i as f32 / STEPS as f32;
        let (x, y, r) = (
            spline(&xs, place),
            spline(&ys, place),
            spline(&rs, place).max(0.0),
        );
        let (before, after) = (
            (place - 0.1).max(0.0),
            (place + 0.1).min((points.len() - 1) as f32),
        );
        let d = [
            spline(&xs, after) - spline(&xs, before),
            spline(&ys, after) - spline(&ys, before),
        ];
        let length = d[0].hypot(d[1]);
        // A limb that points at the camera has no direction of its own: keep the one before.
        let d = if length > 1e-3 {
            [d[0] / length, d[1] / length]
        } else {
            last
        };
        if i == 0 {
            first = d;
        }
        last = d;
        left.push([x - d[1] * r, y + d[0] * r]);
        right.push([x + d[1] * r, y - d[0] * r]);
    }
    let cap = |center: Point2, r: f32, direction: Point2, turn: f32, out: &mut Vec<Point2>| {
        for k in 1..6 {
            let angle = std::f32::consts::PI * k as f32 / 6.0;
            let (sin, cos) = angle.sin_cos();
            // From the left normal over the direction to the right normal.
            let normal = [-direction[1], direction[0]];
            out.push([
                center[0] + r * (turn * normal[0] * cos + turn * direction[0] * sin),
                center[1] + r * (turn * normal[1] * cos + turn * direction[1] * sin),
            ]);
        }
    };
    if round_end {
        let (center, r) = points[points.len() - 1];
        cap(center, r, last, 1.0, &mut left);
    }
    left.extend(right.into_iter().rev());
    if round_start {
        let (center, r) = points[0];
        cap(center, r, first, -1.0, &mut left);
    }
    polygon(&left)
}

/// A body or garment as seen: left and right edge through rows from top to bottom.
///
/// Each row is (center, half width); the last row bulges down by `hem`, the first up by `top`
/// pixels.
pub(crate) fn loft(rows: &[(Point2, f32)], top: f32, hem: f32) -> Option<Path> {
    const STEPS: usize = 4;
    let lefts: Vec<Point2> = rows.iter().map(|r| [r.0[0] - r.1, r.0[1]]).collect();
    let rights: Vec<Point2> = rows.iter().map(|r| [r.0[0] + r.1, r.0[1]]).collect();
    let mut outline = smooth(&rights, STEPS);
    let arc = |row: (Point2, f32), bulge: f32, sign: f32, out: &mut Vec<Point2>| {
        for k in 1..8 {
            let t = k as f32 / 8.0 * std::f32::consts::PI;
            out.push([
                row.0[0] + sign * row.1 * t.cos(),
                row.0[1] + bulge * t.sin(),
            ]);
        }
    };
    if let Some(&row) = rows.last() {
        arc(row, hem, 1.0, &mut outline);
    }
    outline.extend(smooth(&lefts, STEPS).into_iter().rev());
    if let Some(&row) = rows.first() {
        arc(row, -top, -1.0, &mut outline);
    }
    polygon(&outline)
}
