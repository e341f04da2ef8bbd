//! A run: so many guests start, get warm, are measured, and where they hold, are woken and asked for memory.

use super::fleet::{Fleet, Started};
use anyhow::Result;
use experiment::density::{
    Density, GuestRecord, Length, Probe, Question, Sample, Speed, TileReport, Wake, judge,
};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Between two looks at the machine.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two reports of guests that wake.
const BETWEEN_REPORTS: Duration = Duration::from_secs(1);
/// How long a guest may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long guests sleep before they wake.
const SLEEP: Duration = Duration::from_secs(10);
/// What is asked back.
const WANTED_BACK: u64 = 256 << 20;

/// What a run is for.
#[derive(Clone, Debug)]
pub(super) struct Stage<'a> {
    pub(super) density: &'a Density,
    pub(super) question: Question,
    /// Whether it tells how fast a guest is alone.
    pub(super) is_solo: bool,
    /// How fast it is, once that is known.
    pub(super) solo: Option<Speed>,
    pub(super) at_s: f64,
}

/// A run under way.
struct Live<'a, F> {
    stage: &'a Stage<'a>,
    fleet: &'a mut F,
    begin: Instant,
    probe: Probe,
}

impl Stage<'_> {
    fn length(&self) -> Duration {
        let seconds = match (self.is_solo, self.question.length) {
            (true, _) => self.density.solo_s,
            (false, Length::Short) => self.density.short_s,
            (false, Length::Long) => self.density.long_s,
        };
        Duration::from_secs(seconds.into())
    }

    /// Carries it out.
    pub(super) async fn perform(&self, fleet: &mut impl Fleet) -> Result<Probe> {
        let mut live = Live {
            stage: self,
            fleet,
            begin: Instant::now(),
            probe: Probe::new(self.question, self.at_s),
        };
        if live.start().await? {
            live.measure().await?;
        }
        live.note_ends()?;
        if let Some(solo) = &self.solo
            && self.question.length == Length::Long
            && judge(self.density, solo, &live.probe).is_empty()
        {
            live.probe.wake = Some(live.wake(solo).await?);
            live.probe.reclaim_s = live.reclaim().await?;
        }
        Ok(live.probe)
    }
}

impl<F: Fleet> Live<'_, F> {
    /// Starts all guests and lets them get warm. False if that is not to be had.
    async fn start(&mut self) -> Result<bool> {
        for _ in 0..self.stage.question.count {
            if let Started::Refused(why) = self.fleet.start().await? {
                self.probe.refused = Some(why);
                return Ok(false);
            }
            self.probe.guests.push(GuestRecord::default());
            self.look()?;
        }
        let warm = Duration::from_secs(self.stage.density.warm_s.into());
        self.watch(warm).await
    }

    async fn measure(&mut self) -> Result<()> {
        self.note_reports(|guest, report| guest.first = report)
            .await;
        let (from, cpu_s) = (Instant::now(), self.fleet.cpu_s());
        self.probe.warm_at_s = self.begin.elapsed().as_secs_f64();
        self.watch(self.stage.length()).await?;
        self.probe.measured_s = from.elapsed().as_secs_f64();
        self.probe.cpu_s = self.fleet.cpu_s() - cpu_s;
        self.probe.swap_in_us = self.fleet.swap_in_us();
        self.note_reports(|guest, report| guest.last = report).await;
        Ok(())
    }

    /// Looks again and again for so long. False if a guest has ended meanwhile: there is no more to be seen then.
    async fn watch(&mut self, length: Duration) -> Result<bool> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + INTERVAL)).await;
            self.look()?;
            if self.fleet.have_ended().contains(&true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn look(&mut self) -> Result<()> {
        let look = self.fleet.look()?;
        self.probe.samples.push(Sample {
            time_s: self.begin.elapsed().as_secs_f64(),
            used_bytes: look.used,
            saved_bytes: look.saved,
            swapped_bytes: look.swapped,
        });
        Ok(())
    }

    async fn note_reports(&mut self, note: impl Fn(&mut GuestRecord, Option<TileReport>)) {
        let reports = self.fleet.ask(ANSWER).await;
        for (guest, report) in self.probe.guests.iter_mut().zip(reports) {
            note(guest, report);
        }
    }

    fn note_ends(&mut self) -> Result<()> {
        let ended = self.fleet.have_ended();
        for (guest, has_ended) in self.probe.guests.iter_mut().zip(ended) {
            guest.has_ended = has_ended;
        }
        self.probe.oom_kills = self.fleet.oom_kills()?;
        Ok(())
    }

    /// All guests sleep, and wake at once.
    async fn wake(&mut self, solo: &Speed) -> Result<Wake> {
        let density = self.stage.density;
        self.tell(&density.asleep).await;
        sleep(SLEEP).await;
        self.tell(&density.workload).await;
        let begin = Instant::now();
        let mut before = self.fleet.ask(ANSWER).await;
        let mut wake = Wake {
            guests: before.len(),
            ..Wake::default()
        };
        let mut are_back = vec![false; before.len()];
        let patience = Duration::from_secs(density.patience_s.into());
        while begin.elapsed() < patience && are_back.contains(&false) {
            sleep(BETWEEN_REPORTS).await;
            // What bounds memory has to follow.
            self.fleet.look()?;
            let now = self.fleet.ask(ANSWER).await;
            for (index, is_back) in are_back.iter_mut().enumerate().filter(|(_, back)| !**back) {
                let speed = before[index].as_ref().zip(now[index].as_ref());
                let speed = speed.and_then(|(before, now)| Speed::between(before, now));
                if speed.is_some_and(|speed| speed.percent_of(solo) >= density.keep_percent) {
                    *is_back = true;
                    wake.slowest_s = begin.elapsed().as_secs_f64();
                }
            }
            before = now;
        }
        wake.back = are_back.iter().filter(|&&is_back| is_back).count();
        Ok(wake)
    }

    /// Gives all another workload.
    async fn tell(&mut self, workload: &str) {
        let told = self.fleet.type_line(&format!("workload {workload}")).await;
        if let Err(error) = told {
            // One that has ended hears nothing, and comes not back.
            tracing::debug!("not all were told: {error:#}");
        }
    }

    /// How long it takes until so much less is used. None where it does not come, or cannot.
    async fn reclaim(&mut self) -> Result<Option<f64>> {
        let used = self.fleet.look()?.used;
        let begin = Instant::now();
        if !self.fleet.take_back(WANTED_BACK).await? {
            return Ok(None);
        }
        let patience = Duration::from_secs(self.stage.density.patience_s.into());
        let budget = self.stage.density.budget_bytes();
        // Of a side that leaves some of its budget alone not all has to come.
        let wanted = used.min(budget.saturating_sub(WANTED_BACK));
        let mut is_there = false;
        while !is_there && begin.elapsed() < patience {
            sleep(INTERVAL / 5).await;
            is_there = self.fleet.look()?.used <= wanted;
        }
        let took_s = begin.elapsed().as_secs_f64();
        self.fleet.take_back(0).await?;
        Ok(is_there.then_some(took_s))
    }
}
