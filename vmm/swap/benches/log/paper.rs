//! What Rosenblum and Ousterhout 1992 say of the same simulation ("The Design and Implementation of a Log-Structured File
//! System", ACM Transactions on Computer Systems 10(1), sections 3.4 and 3.5).

/// Text, exact: in a file system in which all segments are alike, cleaning costs `2 / (1 - u)` (formula 1).
pub(crate) fn no_variance(utilisation: f64) -> f64 {
    2.0 / (1.0 - utilisation)
}

/// Text: uniform, greedy, a disk that is 75 % full: segments are cleaned at 55 %, so formula 1 gives 4.4.
pub(crate) const UNIFORM_GREEDY: [(f64, f64); 1] = [(0.75, 2.0 / (1.0 - 0.55))];

/// Chart (figure 7), read off to a tenth or two: hot and cold, by cost and benefit, a disk that is 80 % full: what the best
/// that was thought of for update in place costs, 4.
pub(crate) const HOT_COST_BENEFIT: [(f64, f64); 1] = [(0.8, 4.0)];

/// What else the text says.
pub(crate) const REMARKS: [&str; 3] = [
    "uniform, greedy: below 20 % utilisation the write cost is below 2.0",
    "hot and cold: cost-benefit costs up to 50 % less than greedy; greedy costs more than uniform",
    "hot and cold, cost-benefit, 75 %: segments of two kinds, cold ones cleaned at about 75 %, hot ones at about 15 %",
];
