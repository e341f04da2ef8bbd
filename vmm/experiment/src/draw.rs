//! How drawings look, all of them: SVG without a background, in ink and colours that can be told apart
//! on white and on black, also by those who see fewer colours (Okabe and Ito's palette).

use super::plot::{Plot, PlotBand, PlotLine};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::ops::Range;
use thiserror::Error;

const WIDTH: u32 = 920;
const HEIGHT: u32 = 420;
/// What the legend takes of the width.
const LEGEND: u32 = 230;
const LEGEND_LINE: i32 = 22;
/// Characters of a legend's line.
const LEGEND_LETTERS: usize = 29;
const INK: RGBColor = RGBColor(118, 118, 118);
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(118, 118, 118),
];
const BAND_OPACITY: f64 = 0.22;
const FONT: &str = "sans-serif";

/// Why nothing was drawn.
#[derive(Debug, Error)]
#[error("cannot draw '{name}': {why}")]
pub struct DrawError {
    name: String,
    why: String,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws.
///
/// # Errors
/// When there is something in it that cannot be drawn.
pub fn svg(plot: &Plot) -> Result<String, DrawError> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
    let (left, right) = root.split_horizontally(WIDTH - LEGEND);
    draw_axes(&left, plot)
        .and_then(|()| draw_legend(&right, plot))
        .and_then(|()| root.present())
        .map_err(|why| DrawError {
            name: plot.name.clone(),
            why: why.to_string(),
        })?;
    // They borrow the text.
    drop((left, right, root));
    Ok(text)
}

fn draw_axes<'a>(area: &Area<'a>, plot: &Plot) -> Drawn<'a> {
    let (x_range, y_range) = ranges(plot);
    let mut axes = ChartBuilder::on(area)
        .caption(&plot.title, (FONT, 18).into_font().color(&INK))
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(x_range, y_range.clone())?;
    axes.configure_mesh()
        .x_desc(&plot.x_label)
        .y_desc(&plot.y_label)
        .x_labels(if plot.x_names.is_empty() {
            10
        } else {
            plot.x_names.len()
        })
        .x_label_formatter(&|&x| x_text(plot, x))
        .y_label_formatter(&|&y| plain(y))
        .axis_style(INK)
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 13).into_font().color(&INK))
        .axis_desc_style((FONT, 14).into_font().color(&INK))
        .draw()?;
    for &mark in &plot.marks {
        let ends = [(mark, y_range.start), (mark, y_range.end)];
        axes.draw_series(DashedLineSeries::new(ends, 3, 4, INK.mix(0.6).into()))?;
    }
    if let Some(band) = &plot.band {
        draw_band(&mut axes, band)?;
    }
    for (line, colour) in plot.lines.iter().zip(COLOURS.iter().cycle()) {
        draw_line(&mut axes, line, *colour, plot.has_points)?;
    }
    Ok(())
}

fn draw_band<'b>(axes: &mut Axes<'_, 'b>, band: &PlotBand) -> Drawn<'b> {
    let outline: Vec<(f64, f64)> = band
        .low
        .iter()
        .chain(band.high.iter().rev())
        .copied()
        .collect();
    let area = Polygon::new(outline, COLOURS[0].mix(BAND_OPACITY).filled());
    axes.draw_series(std::iter::once(area)).map(drop)
}

fn draw_line<'b>(
    axes: &mut Axes<'_, 'b>,
    line: &PlotLine,
    colour: RGBColor,
    has_points: bool,
) -> Drawn<'b> {
    let points = line.points.iter().copied();
    axes.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
    if has_points {
        let points = points.map(|point| Circle::new(point, 4, colour.filled()));
        axes.draw_series(points)?;
    }
    Ok(())
}

fn draw_legend<'a>(area: &Area<'a>, plot: &Plot) -> Drawn<'a> {
    let font = (FONT, 13).into_font().color(&INK);
    let mut y = 50;
    let lines = plot.lines.iter().zip(COLOURS.iter().cycle());
    for (line, colour) in lines {
        area.draw(&PathElement::new(
            vec![(8, y + 6), (30, y + 6)],
            colour.stroke_width(3),
        ))?;
        area.draw(&Text::new(shortened(&line.label), (38, y), font.clone()))?;
        y += LEGEND_LINE;
    }
    if let Some(band) = &plot.band {
        let colour = COLOURS[0].mix(BAND_OPACITY);
        area.draw(&Rectangle::new([(8, y), (30, y + 12)], colour.filled()))?;
        area.draw(&Text::new(shortened(&band.label), (38, y), font.clone()))?;
        y += LEGEND_LINE;
    }
    if !plot.marks.is_empty() {
        area.draw(&PathElement::new(vec![(19, y), (19, y + 12)], INK.mix(0.6)))?;
        area.draw(&Text::new("something changes".to_owned(), (38, y), font))?;
    }
    Ok(())
}

fn shortened(label: &str) -> String {
    match label.chars().count() <= LEGEND_LETTERS {
        true => label.into(),
        false => label
            .chars()
            .take(LEGEND_LETTERS - 1)
            .chain(['…'])
            .collect(),
    }
}

/// From the first to the last point, and from zero, or what is below, to what is on top.
fn ranges(plot: &Plot) -> (Range<f64>, Range<f64>) {
    let bands = plot
        .band
        .iter()
        .flat_map(|band| band.low.iter().chain(&band.high));
    let lines = plot.lines.iter().flat_map(|line| &line.points);
    let (mut x_least, mut x_most) = (f64::INFINITY, f64::NEG_INFINITY);
    let (mut y_least, mut y_most) = (0.0_f64, 0.0_f64);
    for &(x, y) in lines.chain(bands) {
        (x_least, x_most) = (x_least.min(x), x_most.max(x));
        (y_least, y_most) = (y_least.min(y), y_most.max(y));
    }
    if !plot.has_points {
        x_least = x_least.min(0.0);
    }
    if x_least >= x_most {
        let middle = if x_least.is_finite() { x_least } else { 0.0 };
        (x_least, x_most) = (middle - 1.0, middle + 1.0);
    }
    let x_margin = if plot.has_points {
        (x_most - x_least) * 0.04
    } else {
        0.0
    };
    let y_margin = ((y_most - y_least) * 0.06).max(f64::MIN_POSITIVE);
    let y_top = if y_most > y_least {
        y_most + y_margin
    } else {
        1.0
    };
    let y_bottom = if y_least < 0.0 {
        y_least - y_margin
    } else {
        0.0
    };
    (x_least - x_margin..x_most + x_margin, y_bottom..y_top)
}

fn x_text(plot: &Plot, x: f64) -> String {
    if plot.x_names.is_empty() {
        return plain(x);
    }
    let place = (0u32..).zip(&plot.x_names);
    let mut at_x = place.filter(|(index, _)| (f64::from(*index) - x).abs() < 0.01);
    at_x.next()
        .map(|(_, name)| name.clone())
        .unwrap_or_default()
}

/// A number without zeros that say nothing.
fn plain(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_named_and_has_no_background() {
        let plot = Plot {
            name: "n".into(),
            title: "A < title & more".into(),
            x_label: "seconds".into(),
            y_label: "MiB".into(),
            lines: vec![PlotLine {
                label: "held".into(),
                points: vec![(0.0, 1.0), (1.0, -5.0), (2.0, 9.5)],
            }],
            band: Some(PlotBand {
                label: "95 % interval".into(),
                low: vec![(0.0, 0.0), (2.0, 1.0)],
                high: vec![(0.0, 2.0), (2.0, 12.0)],
            }),
            marks: vec![1.5],
            has_points: true,
            ..Plot::default()
        };
        let text = svg(&plot).unwrap();
        for word in [
            "A &lt; title &amp; more",
            "seconds",
            "MiB",
            "held",
            "95 % interval",
        ] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert!(!text.to_lowercase().contains("#ffffff"), "{text}");
    }

    #[test]
    fn nothing_and_one_point_can_be_drawn() {
        let mut plot = Plot::default();
        assert!(svg(&plot).unwrap().contains("<svg"));
        plot.lines.push(PlotLine {
            label: "one".into(),
            points: vec![(3.0, 0.0)],
        });
        plot.x_names = vec!["a".into(), "b".into()];
        assert!(svg(&plot).unwrap().contains("one"));
    }
}
