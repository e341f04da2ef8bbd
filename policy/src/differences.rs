//! Where two plans for one snapshot differ, for people who replay a recording.
//!
//! Each struct is destructured in full, so that a new field does not compile before it is compared.

use crate::{Orders, Plan, Step, TouchLimit};
use std::fmt::{Debug, Display};

/// A line for each difference: what it is, as recorded, and as planned now. None for equal plans.
#[must_use]
pub fn differences(recorded: &Plan, now: &Plan) -> Vec<String> {
    let mut found = Differences::default();
    let Plan {
        steps,
        free,
        shortfall,
        orders,
        large_pages,
        broken_blocks,
    } = recorded;
    found.compare("free", free, &now.free);
    found.compare("shortfall", shortfall, &now.shortfall);
    found.compare("number of VMs", &steps.len(), &now.steps.len());
    for (old, new) in steps.iter().zip(&now.steps) {
        found.compare_steps(old, new);
    }
    found.compare_orders(orders, &now.orders);
    found.compare_as("large pages", large_pages, &now.large_pages, lower_case);
    found.compare_as(
        "broken blocks",
        broken_blocks,
        &now.broken_blocks,
        lower_case,
    );
    found.lines
}

#[derive(Debug, Default)]
struct Differences {
    lines: Vec<String>,
}

impl Differences {
    fn compare<T: PartialEq + Display>(&mut self, what: &str, recorded: &T, now: &T) {
        self.compare_as(what, recorded, now, T::to_string);
    }

    fn compare_as<T: PartialEq>(
        &mut self,
        what: &str,
        recorded: &T,
        now: &T,
        text: impl Fn(&T) -> String,
    ) {
        if recorded != now {
            let (recorded, now) = (text(recorded), text(now));
            self.lines
                .push(format!("{what}: {recorded} recorded, {now} now"));
        }
    }

    fn compare_steps(&mut self, recorded: &Step, now: &Step) {
        let Step {
            id,
            target,
            grant,
            pooled,
            by_other_means,
            touch_limit,
            kernel_reclaim,
        } = recorded;
        let of_vm = |what| format!("VM {id}, {what}");
        self.compare(&of_vm("id"), id, &now.id);
        self.compare(&of_vm("target"), target, &now.target);
        self.compare(&of_vm("grant"), grant, &now.grant);
        self.compare(&of_vm("pooled"), pooled, &now.pooled);
        self.compare(
            &of_vm("by other means"),
            by_other_means,
            &now.by_other_means,
        );
        self.compare_as(
            &of_vm("touch limit"),
            touch_limit,
            &now.touch_limit,
            limit_text,
        );
        self.compare(
            &of_vm("taken by the kernel"),
            kernel_reclaim,
            &now.kernel_reclaim,
        );
    }

    fn compare_orders(&mut self, recorded: &Orders, now: &Orders) {
        let Orders {
            share_harder,
            balloon,
            compress_and_swap,
            block_above_target,
        } = recorded;
        self.compare("share harder", share_harder, &now.share_harder);
        self.compare_as("balloon pace", balloon, &now.balloon, lower_case);
        let swaps = &now.compress_and_swap;
        self.compare("compress and swap", compress_and_swap, swaps);
        let blocks = &now.block_above_target;
        self.compare("block above target", block_above_target, blocks);
    }
}

fn limit_text(limit: &Option<TouchLimit>) -> String {
    let Some(TouchLimit {
        slow_above,
        stop_above,
    }) = limit
    else {
        return "none".into();
    };
    format!("slow above {slow_above} and stop above {stop_above}")
}

fn lower_case(variant: &impl Debug) -> String {
    format!("{variant:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BrokenBlocks, LargePages};
    use page::{PageCount, VmId};
    use serde_json::{Value, json};

    /// With every optional part there, so that each field is among the leaves of its JSON.
    fn full_plan() -> Plan {
        Plan {
            steps: vec![Step {
                id: VmId(0),
                target: PageCount::ZERO,
                grant: PageCount::ZERO,
                pooled: PageCount::ZERO,
                by_other_means: PageCount::ZERO,
                touch_limit: Some(TouchLimit::default()),
                kernel_reclaim: PageCount::ZERO,
            }],
            free: PageCount::ZERO,
            shortfall: PageCount::ZERO,
            large_pages: LargePages::Fill,
            broken_blocks: BrokenBlocks::None,
            orders: Orders::default(),
        }
    }

    /// JSON pointers to all numbers, texts and booleans.
    fn leaves(value: &Value, pointer: &str) -> Vec<String> {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(key, v)| (key.clone(), v)).collect(),
            Value::Array(items) => (0..).map(|i: u32| i.to_string()).zip(items).collect(),
            Value::Null => panic!("{pointer} is not there: fill it in in full_plan"),
            _ => return vec![pointer.to_owned()],
        };
        children
            .into_iter()
            .flat_map(|(key, child)| leaves(child, &format!("{pointer}/{key}")))
            .collect()
    }

    fn another(leaf: &Value) -> Value {
        match leaf {
            Value::Bool(is) => json!(!is),
            Value::Number(_) => json!(256),
            Value::String(pace) if pace == "gentle" => json!("fast"),
            Value::String(large) if large == "fill" => json!("full"),
            Value::String(broken) if broken == "none" => json!("cold"),
            other => panic!("no other value is known for {other}"),
        }
    }

    #[test]
    fn a_difference_in_any_one_field_is_one_line() {
        let recorded = full_plan();
        let whole = serde_json::to_value(&recorded).unwrap();
        for pointer in leaves(&whole, "") {
            let mut changed = whole.clone();
            let leaf = changed.pointer_mut(&pointer).unwrap();
            *leaf = another(leaf);
            let now: Plan = serde_json::from_value(changed).unwrap();
            let lines = differences(&recorded, &now);
            assert_eq!(lines.len(), 1, "{pointer}: {lines:?}");
        }
    }

    #[test]
    fn a_limit_that_is_gone_and_a_vm_that_is_gone_are_differences() {
        let recorded = full_plan();
        let mut now = full_plan();
        now.steps[0].touch_limit = None;
        assert_eq!(
            differences(&recorded, &now),
            ["VM 0, touch limit: slow above 0 MiB and stop above 0 MiB recorded, none now"]
        );
        now.steps.clear();
        assert_eq!(
            differences(&recorded, &now),
            ["number of VMs: 1 recorded, 0 now"]
        );
    }

    #[test]
    fn equal_plans_do_not_differ() {
        assert!(differences(&full_plan(), &full_plan()).is_empty());
    }
}
