//! A figure over time in one line: a bar for each piece of it.

/// From nothing to all.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The newest at the right. What is more than nothing can be seen.
pub(super) fn bars(values: &[u64], width: usize, ceiling: u64) -> String {
    let shown = values.len().min(width);
    let piece = |index: usize| {
        let piece = &values[index * values.len() / shown..(index + 1) * values.len() / shown];
        let sum: u128 = piece.iter().copied().map(u128::from).sum();
        level(sum.div_ceil(piece.len() as u128), ceiling)
    };
    let padding = std::iter::repeat_n(' ', width - shown);
    padding.chain((0..shown).map(piece)).collect()
}

fn level(value: u128, ceiling: u64) -> char {
    let most = LEVELS.len() - 1;
    let level = (value * most as u128).div_ceil(u128::from(ceiling.max(1)));
    LEVELS[usize::try_from(level).unwrap_or(most).min(most)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_is_at_the_right_and_long_histories_are_squeezed() {
        assert_eq!(bars(&[0, 4, 8], 5, 8), "   ▄█");
        assert_eq!(bars(&[8, 8, 0, 0, 1, 1], 3, 8), "█ ▁");
        assert_eq!(bars(&[], 2, 8), "  ");
        assert_eq!(bars(&[1], 0, 8), "");
    }

    proptest! {
        #[test]
        fn bars_are_as_wide_as_was_asked_whatever_they_show(
            values in prop::collection::vec(any::<u64>(), 0..700), width in 0_usize..300, ceiling: u64
        ) {
            prop_assert_eq!(bars(&values, width, ceiling).chars().count(), width);
        }

        #[test]
        fn what_is_more_than_nothing_can_be_seen(value in 1_u64.., ceiling: u64) {
            prop_assert!(bars(&[value], 1, ceiling) != " ");
        }
    }
}
