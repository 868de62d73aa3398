//! A logarithmic scale: the same distance is the same ratio, so that rows of nanoseconds and of milliseconds can stand on one.

use crate::bench::figure::{Aim, Figure};

/// What can be drawn. A report may come from anywhere, and may say anything.
const DRAWABLE: (f64, f64) = (1e-6, 1e18);
/// Powers of ten up to which each has its label.
const LABELLED: i32 = 4;

/// What rows measure; those that measure the same stand on the same scale, in its unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dimension {
    /// In nanoseconds.
    Time,
    /// In a unit of its own, or as a number.
    Other(String),
}

impl Dimension {
    pub(super) fn of(figure: &Figure) -> Self {
        if nanoseconds(&figure.unit).is_some() { Self::Time } else { Self::Other(figure.unit.clone()) }
    }

    /// A power of ten of it, as one would say it.
    fn label(&self, exponent: i32) -> String {
        let Self::Time = self else {
            let Self::Other(unit) = self else { unreachable!("there are two") };
            let digits = usize::try_from(-exponent).unwrap_or(0);
            return format!("{:.digits$} {unit}", 10_f64.powi(exponent)).trim_end().to_owned();
        };
        let (start, unit) = match exponent {
            ..0 => return format!("{:.*} ns", exponent.unsigned_abs() as usize, 10_f64.powi(exponent)),
            0..3 => (0, "ns"),
            3..6 => (3, "µs"),
            6..9 => (6, "ms"),
            9.. => (9, "s"),
        };
        format!("{} {unit}", 10_u64.pow((exponent - start).unsigned_abs()))
    }
}

/// How many nanoseconds a unit of time is.
fn nanoseconds(unit: &str) -> Option<f64> {
    match unit {
        "ns" => Some(1.0),
        "us" => Some(1e3),
        "ms" => Some(1e6),
        "s" => Some(1e9),
        _ => None,
    }
}

/// A value of a row, as its dimension has it.
pub(super) fn value(figure: &Figure, value: f64) -> f64 {
    value * nanoseconds(&figure.unit).unwrap_or(1.0)
}

/// A scale.
pub(super) struct Axis {
    dimension: Dimension,
    /// The powers of ten at its ends.
    low: i32,
    high: i32,
}

impl Axis {
    /// One on which these values are. There may be none that can be drawn.
    pub(super) fn new(dimension: Dimension, values: impl Iterator<Item = f64>) -> Self {
        let exponents = values.filter(|value| *value > 0.0).map(exponent);
        let (low, high) = exponents
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), one| (low.min(one), high.max(one)));
        if low > high {
            return Self { dimension, low: 0, high: 1 };
        }
        // A mark at the very edge would be cut.
        let (low, high) = ((low - 0.05).floor() as i32, (high + 0.05).ceil() as i32);
        Self { dimension, low, high: high.max(low + 1) }
    }

    /// Where a value is, in percent of the length, and whether that is where it belongs: it may be past an end.
    pub(super) fn position(&self, value: f64) -> (f64, bool) {
        let exponent = if value > 0.0 { exponent(value) } else { f64::NEG_INFINITY };
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let inside = exponent.clamp(low, high);
        ((inside - low) / (high - low) * 100.0, inside == exponent)
    }

    /// The powers of ten: where they are, and what they are called if there is room to say so.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, Option<String>)> {
        let crowded = self.high - self.low > LABELLED;
        (self.low..=self.high).map(move |exponent| {
            let at = f64::from(exponent - self.low) / f64::from(self.high - self.low) * 100.0;
            (at, (!crowded || exponent % 3 == 0).then(|| self.dimension.label(exponent)))
        })
    }
}

fn exponent(value: f64) -> f64 {
    value.clamp(DRAWABLE.0, DRAWABLE.1).log10()
}

/// What a row's aim comes to as a value, beside the row that it is compared with.
pub(super) fn aim(figure: &Figure, other: Option<&Figure>) -> Option<f64> {
    match figure.aim? {
        Aim::Median(most) => Some(value(figure, most)),
        Aim::Ratio(most) => other.map(|other| value(other, other.median) * most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<(i32, String)> {
        axis.ticks().filter_map(|(at, label)| Some((at.round() as i32, label?))).collect()
    }

    #[test]
    fn the_scale_is_of_whole_powers_of_ten() {
        let axis = Axis::new(Dimension::Time, [120.0, 4300.0].into_iter());
        assert_eq!(labels(&axis), [(0, "100 ns".into()), (50, "1 µs".into()), (100, "10 µs".into())]);
        assert_eq!(axis.position(1000.0), (50.0, true));
        assert_eq!((axis.position(50.0), axis.position(1e9)), ((0.0, false), (100.0, false)));
        assert_eq!(axis.position(0.0), (0.0, false));
    }

    #[test]
    fn a_crowded_scale_names_its_units() {
        let axis = Axis::new(Dimension::Time, [2.0, 4e6].into_iter());
        let names: Vec<_> = labels(&axis).into_iter().map(|(_, label)| label).collect();
        assert_eq!(names, ["1 ns", "1 µs", "1 ms"]);
        assert_eq!(axis.ticks().count(), 8);
    }

    #[test]
    fn other_units_have_their_own_names() {
        let axis = Axis::new(Dimension::Other("%".into()), [0.02].into_iter());
        assert_eq!(labels(&axis), [(0, "0.01 %".into()), (100, "0.1 %".into())]);
        let number = Axis::new(Dimension::Other(String::new()), [30.0].into_iter());
        assert_eq!(labels(&number), [(0, "10".into()), (100, "100".into())]);
    }

    #[test]
    fn what_cannot_be_drawn_does_no_harm() {
        for values in [vec![], vec![0.0], vec![-1.0], vec![f64::MAX, f64::MIN_POSITIVE]] {
            let axis = Axis::new(Dimension::Time, values.iter().copied());
            assert!(axis.ticks().count() <= 30, "{values:?}");
            for value in values.into_iter().chain([0.0, -1.0, f64::MAX]) {
                assert!((0.0..=100.0).contains(&axis.position(value).0), "{value}");
            }
        }
    }
}
