//! Small charts as SVG text. Colours come from CSS classes of the report, so that they follow its
//! light or dark theme.

use std::fmt::Write;

/// A named line of `(x, y)` points.
pub struct Line<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Points, in order of x.
    pub points: &'a [(f64, f64)],
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 30.0;

/// Lines over a shared x axis. Points that are not finite are left out.
pub fn lines(title: &str, x_name: &str, lines: &[Line]) -> String {
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
    let (x_range, y_range) = (x_range.padded(0.0), y_range.padded(0.05));
    let x_at = |x: f64| LEFT + x_range.part(x) * (WIDTH - LEFT - RIGHT);
    let y_at = |y: f64| HEIGHT - BOTTOM - y_range.part(y) * (HEIGHT - TOP - BOTTOM);

    let mut svg = open(title);
    for tick in y_range.ticks() {
        let y = y_at(tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            short(tick)
        );
    }
    for tick in x_range.ticks() {
        let _ = write!(
            svg,
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            x_at(tick),
            HEIGHT - BOTTOM + 16.0,
            short(tick)
        );
    }
    let _ = write!(
        svg,
        r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
        WIDTH - RIGHT,
        HEIGHT - 2.0,
        escape(x_name)
    );
    for (index, line) in lines.iter().enumerate() {
        let points: Vec<String> = line
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|&(x, y)| format!("{:.1},{:.1}", x_at(x), y_at(y)))
            .collect();
        let _ = write!(
            svg,
            r#"<polyline class="line c{}" points="{}"/>"#,
            index % 6,
            points.join(" ")
        );
    }
    legend(&mut svg, lines.iter().map(|line| line.name));
    svg.push_str("</svg>");
    svg
}

/// Groups of bars: one group per row name, one bar per column name; values from 0 to 1.
pub fn bars(title: &str, rows: &[&str], columns: &[String], values: &[Vec<f64>]) -> String {
    let top = values
        .iter()
        .flatten()
        .copied()
        .fold(0.0, f64::max)
        .max(1e-9);
    let range = Range {
        low: 0.0,
        high: top * 1.05,
    };
    let mut svg = open(title);
    for tick in range.ticks() {
        let y = HEIGHT - BOTTOM - range.part(tick) * (HEIGHT - TOP - BOTTOM);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            short(tick)
        );
    }
    let group = (WIDTH - LEFT - RIGHT) / columns.len().max(1) as f64;
    let bar = group * 0.8 / rows.len().max(1) as f64;
    for (column, name) in columns.iter().enumerate() {
        let start = LEFT + column as f64 * group + group * 0.1;
        for (row, series) in values.iter().enumerate() {
            let value = series.get(column).copied().unwrap_or(0.0);
            let height = range.part(value) * (HEIGHT - TOP - BOTTOM);
            let _ = write!(
                svg,
                r#"<rect class="bar c{}" x="{:.1}" y="{:.1}" width="{bar:.1}" height="{height:.1}"><title>{} {}: {value:.3}</title></rect>"#,
                row % 6,
                start + row as f64 * bar,
                HEIGHT - BOTTOM - height,
                escape(rows.get(row).copied().unwrap_or("")),
                escape(name)
            );
        }
        let _ = write!(
            svg,
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            start + group * 0.4,
            HEIGHT - BOTTOM + 16.0,
            escape(name)
        );
    }
    legend(&mut svg, rows.iter().copied());
    svg.push_str("</svg>");
    svg
}

fn open(title: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{0}"><text class="title" x="{LEFT}" y="14">{0}</text>"#,
        escape(title)
    )
}

fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) {
    let names: Vec<&str> = names.collect();
    if names.len() < 2 {
        return;
    }
    let mut x = WIDTH - RIGHT;
    for (index, name) in names.iter().enumerate().rev() {
        x -= 7.0 * name.chars().count() as f64 + 18.0;
        let _ = write!(
            svg,
            r#"<rect class="bar c{}" x="{x:.1}" y="6" width="9" height="9"/><text class="tick" x="{:.1}" y="14">{}</text>"#,
            index % 6,
            x + 13.0,
            escape(name)
        );
    }
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

    #[test]
    fn charts_hold_every_finite_point_and_escape_names() {
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)];
        let svg = lines(
            "a < b",
            "step",
            &[Line {
                name: "loss",
                points: &points,
            }],
        );
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN"));
        let polyline = svg
            .split("points=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        assert_eq!(polyline.map(|points| points.split(' ').count()), Some(2));
    }

    #[test]
    fn an_empty_chart_and_a_flat_line_have_an_axis() {
        for points in [&[][..], &[(0.0, 5.0), (1.0, 5.0)][..]] {
            let svg = lines("t", "x", &[Line { name: "n", points }]);
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"));
        }
    }
}
