//! The charts: SVG without a background, in colours that can be told apart on white and on black (Okabe and Ito's palette).

use plotters::prelude::*;
use std::ops::Range;

const SIZE: (u32, u32) = (920, 460);
const LEGEND: u32 = 250;
const INK: RGBColor = RGBColor(118, 118, 118);
const COLOURS: [RGBColor; 7] = [
    RGBColor(86, 180, 233),
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(118, 118, 118),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const FONT: &str = "sans-serif";

/// What a chart shows, and how far.
pub(crate) struct Axes {
    pub(crate) caption: String,
    pub(crate) x: &'static str,
    pub(crate) x_range: Range<f64>,
    pub(crate) y: &'static str,
    pub(crate) y_most: f64,
}

/// Points of one kind.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// Or points alone.
    pub(crate) is_line: bool,
    /// Points of it, on a line.
    pub(crate) has_points: bool,
}

pub(crate) fn svg(axes: &Axes, lines: &[Line]) -> String {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let (left, right) = root.split_horizontally(SIZE.0 - LEGEND);
        let mut chart = ChartBuilder::on(&left)
            .caption(&axes.caption, (FONT, 18).into_font().color(&INK))
            .margin(12)
            .x_label_area_size(46)
            .y_label_area_size(60)
            .build_cartesian_2d(axes.x_range.clone(), 0.0..axes.y_most)
            .unwrap();
        chart
            .configure_mesh()
            .x_desc(axes.x)
            .y_desc(axes.y)
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 13).into_font().color(&INK))
            .axis_desc_style((FONT, 14).into_font().color(&INK))
            .draw()
            .unwrap();
        for (number, (line, colour)) in (0i32..).zip(lines.iter().zip(COLOURS)) {
            if line.is_line {
                let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
                chart.draw_series(series).unwrap();
            }
            if line.has_points {
                let size = if line.is_line { 3 } else { 6 };
                let points = line.points.iter();
                let circles = points.map(|&point| Circle::new(point, size, colour.filled()));
                chart.draw_series(circles).unwrap();
            }
            let y = 50 + number * 22;
            right
                .draw(&PathElement::new(
                    vec![(8, y + 6), (30, y + 6)],
                    colour.stroke_width(3),
                ))
                .unwrap();
            right
                .draw(&Text::new(
                    line.name.clone(),
                    (38, y),
                    (FONT, 13).into_font().color(&INK),
                ))
                .unwrap();
        }
        root.present().unwrap();
    }
    text
}
