//! VMs of another host that share pages, while they come one by one.
//!
//! Those of one trust group show frames of one store. Which of these are free is known when all of the group have come or
//! have ended: until then none of them shares, nor does one that starts meanwhile.

use page::VmId;
use sharing::TrustGroup;
use std::collections::BTreeMap;

/// Who is to come. `T` is what is known of one that has.
#[derive(Debug)]
pub(super) struct Arrivals<T> {
    vms: BTreeMap<VmId, Arrival<T>>,
    is_over: bool,
}

#[derive(Debug)]
struct Arrival<T> {
    group: Option<TrustGroup>,
    come: Option<T>,
}

impl<T> Default for Arrivals<T> {
    fn default() -> Self {
        Self {
            vms: BTreeMap::new(),
            is_over: false,
        }
    }
}

impl<T> Arrivals<T> {
    /// One is to come.
    pub(super) fn expect(&mut self, id: VmId, group: Option<TrustGroup>) {
        self.vms.insert(id, Arrival { group, come: None });
    }

    /// Whether nobody is to come any more: once.
    pub(super) fn end(&mut self) -> bool {
        self.vms.is_empty() && !std::mem::replace(&mut self.is_over, true)
    }

    /// One has come, or has just been started. Who can share now: all of one group.
    pub(super) fn come(&mut self, id: VmId, group: Option<TrustGroup>, vm: T) -> Vec<T> {
        let arrival = Arrival {
            group: group.clone(),
            come: Some(vm),
        };
        self.vms.insert(id, arrival);
        self.take_whole(id, group.as_ref())
    }

    /// One has ended. Who can share now.
    pub(super) fn ended(&mut self, id: VmId) -> Vec<T> {
        match self.vms.remove(&id) {
            Some(Arrival { group, .. }) => self.take_whole(id, group.as_ref()),
            None => Vec::new(),
        }
    }

    fn take_whole(&mut self, id: VmId, group: Option<&TrustGroup>) -> Vec<T> {
        let is_member = |other: &VmId, arrival: &Arrival<T>| match group {
            Some(_) => arrival.group.as_ref() == group,
            None => *other == id,
        };
        let mut members = self
            .vms
            .iter()
            .filter(|(id, arrival)| is_member(id, arrival));
        if members.any(|(_, arrival)| arrival.come.is_none()) {
            return Vec::new();
        }
        let whole = self
            .vms
            .extract_if(.., |id, arrival| is_member(id, arrival));
        whole.filter_map(|(_, arrival)| arrival.come).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_comes_whole_and_who_has_none_comes_alone() {
        let web: Option<TrustGroup> = "web".parse().ok();
        let mut arrivals = Arrivals::default();
        for id in 1..=3 {
            arrivals.expect(VmId(id), web.clone());
        }
        arrivals.expect(VmId(4), None);
        arrivals.expect(VmId(5), None);
        assert!(arrivals.come(VmId(1), web.clone(), 1).is_empty());
        assert_eq!(arrivals.come(VmId(5), None, 5), [5]);
        // One that has just been started.
        assert_eq!(arrivals.come(VmId(6), None, 6), [6]);
        assert!(arrivals.come(VmId(7), web.clone(), 7).is_empty());
        assert!(arrivals.ended(VmId(2)).is_empty());
        assert!(arrivals.ended(VmId(9)).is_empty());
        assert_eq!(arrivals.come(VmId(3), web.clone(), 3), [1, 3, 7]);
        assert!(!arrivals.end());
        assert!(arrivals.ended(VmId(4)).is_empty());
        assert!(arrivals.end() && !arrivals.end());
        assert_eq!(arrivals.come(VmId(8), web.clone(), 8), [8]);
        // The last one of a group that is missing ends.
        arrivals.expect(VmId(10), web.clone());
        assert!(arrivals.come(VmId(11), web, 11).is_empty());
        assert_eq!(arrivals.ended(VmId(10)), [11]);
    }
}
