//! Small charts as SVG text. Colors come from CSS classes of the report, so that they follow its
//! light or dark theme.

use std::fmt::Write;

/// A named line of `(x, y)` points.
pub struct ChartLine<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Points, in order of x.
    pub points: &'a [(f64, f64)],
}

/// Title and names of the axes of a chart.
#[derive(Clone, Copy)]
pub struct Axes<'a> {
    /// Title, above.
    pub title: &'a str,
    /// Name and unit of the horizontal axis.
    pub x: &'a str,
    /// Name and unit of the vertical axis.
    pub y: &'a str,
}

/// A horizontal reference line.
pub struct ReferenceLine {
    /// What it is.
    pub name: String,
    /// Where it lies on the vertical axis.
    pub at: f64,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 42.0;

/// Lines over a shared x axis, with a dashed reference line if one is given. Points that are not
/// finite are left out.
pub fn lines(axes: Axes<'_>, lines: &[ChartLine], reference: Option<&ReferenceLine>) -> String {
    let finite = || {
        lines
            .iter()
            .flat_map(|line| line.points.iter())
            .filter(|(x, y)| x.is_finite() && y.is_finite())
    };
    let (mut x_range, mut y_range) = (Range::new(), Range::new());
    for &(x, y) in finite() {
        x_range.include(x);
        y_range.include(y);
    }
    if let Some(reference) = reference {
        y_range.include(reference.at);
    }
    let (x_range, y_range) = (x_range.padded(0.0), y_range.padded(0.05));
    let x_at = |x: f64| LEFT + x_range.part(x) * (WIDTH - LEFT - RIGHT);

    let mut svg = open(axes);
    grid(&mut svg, y_range);
    for tick in x_range.ticks() {
        let _ = write!(
            svg,
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            x_at(tick),
            HEIGHT - BOTTOM + 16.0,
            short(tick)
        );
    }
    if let Some(reference) = reference {
        let y = y_at(y_range, reference.at);
        let _ = write!(
            svg,
            r#"<line class="reference" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/>"#,
            WIDTH - RIGHT
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let points: Vec<String> = line
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|&(x, y)| format!("{:.1},{:.1}", x_at(x), y_at(y_range, y)))
            .collect();
        let _ = write!(
            svg,
            r#"<polyline class="line c{}" points="{}"/>"#,
            index % 6,
            points.join(" ")
        );
    }
    let x = legend(&mut svg, lines.iter().map(|line| line.name));
    if let Some(reference) = reference {
        // In the legend, where it hides no line.
        let _ = write!(
            svg,
            r#"<line class="reference" x1="{x:.1}" x2="{:.1}" y1="31" y2="31"/><text class="tick" x="{:.1}" y="36">{}</text>"#,
            x + 24.0,
            x + 30.0,
            escape(&reference.name)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn y_at(range: Range, y: f64) -> f64 {
    HEIGHT - BOTTOM - range.part(y) * (HEIGHT - TOP - BOTTOM)
}

/// An empty chart with its title and the names of its axes.
fn open(Axes { title, x, y }: Axes<'_>) -> String {
    let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{0}"><text class="title" x="{LEFT}" y="16">{0}</text><text class="tick" x="{1:.1}" y="{2:.1}" text-anchor="end">{3}</text><text class="tick" x="14" y="{middle:.1}" text-anchor="middle" transform="rotate(-90 14 {middle:.1})">{4}</text>"#,
        escape(title),
        WIDTH - RIGHT,
        HEIGHT - 6.0,
        escape(x),
        escape(y)
    )
}

/// Horizontal grid lines with their values.
fn grid(svg: &mut String, range: Range) {
    for tick in range.ticks() {
        let y = y_at(range, tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            short(tick)
        );
    }
}

/// Names of the lines or bars, below the title; where more can stand on that line.
fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) -> f64 {
    let mut x = LEFT;
    for (index, name) in names.enumerate() {
        let _ = write!(
            svg,
            r#"<rect class="bar c{}" x="{x:.1}" y="26" width="10" height="10"/><text class="tick" x="{:.1}" y="36">{}</text>"#,
            index % 6,
            x + 15.0,
            escape(name)
        );
        x += 7.5 * name.chars().count() as f64 + 32.0;
    }
    x
}

/// Text as it may stand in HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn new() -> Self {
        Self {
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
        }
    }

    fn include(&mut self, value: f64) {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
    }

    /// A range that has a length even if nothing, or one value, was included.
    fn padded(self, share: f64) -> Self {
        if self.low > self.high {
            return Self {
                low: 0.0,
                high: 1.0,
            };
        }
        let length = (self.high - self.low).max(self.high.abs() * 1e-3).max(1e-9);
        Self {
            low: self.low - share * length,
            high: self.low + (1.0 + share) * length,
        }
    }

    fn part(self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// About four round numbers inside the range.
    fn ticks(self) -> Vec<f64> {
        let rough = (self.high - self.low) / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let mut tick = (self.low / step).ceil() * step;
        let mut ticks = Vec::new();
        while tick <= self.high && ticks.len() < 12 {
            ticks.push(tick);
            tick += step;
        }
        ticks
    }
}

fn short(value: f64) -> String {
    let value = if value.abs() < 1e-12 { 0.0 } else { value };
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXES: Axes<'_> = Axes {
        title: "a < b",
        x: "step",
        y: "nats",
    };

    /// The points of the chart's only line, as (x, y).
    fn points_of(svg: &str) -> Vec<(f64, f64)> {
        let points = svg.split("points=\"").nth(1).unwrap();
        let points = points.split('"').next().unwrap().split_whitespace();
        points
            .map(|point| {
                let (x, y) = point.split_once(',').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            })
            .collect()
    }

    #[test]
    fn charts_hold_every_finite_point_and_escape_names() {
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)];
        let line = ChartLine {
            name: "loss",
            points: &points,
        };
        let svg = lines(AXES, &[line], None);
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN"));
        assert!(svg.contains(">step</text>") && svg.contains(">nats</text>"));
        assert_eq!(points_of(&svg).len(), 2);
    }

    #[test]
    fn a_reference_line_is_drawn_where_its_value_lies_even_above_all_points() {
        let points = [(0.0, 1.0), (1.0, 2.0)];
        let line = ChartLine {
            name: "loss",
            points: &points,
        };
        let reference = ReferenceLine {
            name: "ln 8 = 2.08".to_owned(),
            at: 8f64.ln(),
        };
        let svg = lines(AXES, &[line], Some(&reference));
        assert!(svg.contains(">ln 8 = 2.08</text>"));
        let drawn = svg.split("class=\"reference\"").nth(1).unwrap();
        let y = drawn.split("y1=\"").nth(1).unwrap().split('"').next();
        let y: f64 = y.unwrap().parse().unwrap();
        // Above the highest point by its share of what lies between the two points.
        let found = points_of(&svg);
        let expected = found[1].1 - (8f64.ln() - 2.0) * (found[0].1 - found[1].1);
        assert!(y >= TOP && (y - expected).abs() < 0.2, "{y} {expected}");
    }

    #[test]
    fn an_empty_chart_and_a_flat_line_have_an_axis() {
        for points in [&[][..], &[(0.0, 5.0), (1.0, 5.0)][..]] {
            let svg = lines(AXES, &[ChartLine { name: "n", points }], None);
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"));
        }
    }
}
