//! A guest as the benchmarks drive it, whoever runs it.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Pages of a change of a balloon that counts.
const LEAST_CHANGE: u64 = 4096;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The embedded guest on one of the machines compared.
pub(crate) trait Machine {
    /// Types a line on its console; the lines that it answers with.
    fn command(&mut self, line: &str) -> Result<String>;
    /// Asks for a balloon of that many bytes.
    fn set_balloon(&mut self, bytes: u64) -> Result<()>;
    /// Bytes of guest memory that the machine holds.
    fn resident(&mut self) -> Result<u64>;
    /// Its process.
    fn pid(&self) -> u32;

    /// The guest's own figures.
    fn report(&mut self) -> Result<Value> {
        let answer = self.command("report")?;
        let line = answer
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix("report "));
        serde_json::from_str(line.context("the guest gave no report")?)
            .context("the guest's report")
    }

    /// Waits until the guest has touched that much.
    fn wait_until_resident(&mut self, bytes: u64) -> Result<()> {
        let begin = Instant::now();
        while self.resident()? < bytes {
            if begin.elapsed() > PATIENCE {
                bail!("the guest did not touch {bytes} bytes in time");
            }
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Milliseconds, by the guest's clock, from the start of a workload until it holds so many bytes.
    fn time_to_hold(&mut self, workload: &str, bytes: u64) -> Result<f64> {
        let figure = |report: &Value, name: &str| {
            let figure = report[name].as_f64();
            figure.with_context(|| format!("report has no {name}"))
        };
        self.command(&format!("workload {workload}"))?;
        let begin = Instant::now();
        loop {
            // A report takes time from the guest, a byte after the other: most are done by then.
            sleep(Duration::from_secs(4));
            let report = self.report()?;
            if figure(&report, "held")? * 4096.0 >= bytes as f64 {
                return Ok(figure(&report, "grown_us")? / 1e3);
            }
            if begin.elapsed() > PATIENCE {
                bail!("the guest did not touch {bytes} bytes in time: {report}");
            }
        }
    }

    /// Moves the balloon to a new size; pages a second by the guest's clock, while it moves: a host that is in no hurry
    /// asks for a part every second.
    fn move_balloon(&mut self, bytes: u64) -> Result<f64> {
        self.set_balloon(bytes)?;
        let begin = Instant::now();
        let (mut last, mut sum) = ([0; 2], [0; 2]);
        loop {
            sleep(Duration::from_millis(200));
            let report = self.report()?;
            let figure = |name: &str| {
                report[name]
                    .as_u64()
                    .with_context(|| format!("report has no {name}"))
            };
            let change = [
                figure("balloon_change_pages")?,
                figure("balloon_change_us")?,
            ];
            // What is left over in the end says nothing of the rest.
            if change != last && change[0] >= LEAST_CHANGE {
                sum = [sum[0] + change[0], sum[1] + change[1]];
            }
            last = change;
            if figure("balloon_actual")? * 4096 == bytes
                && figure("balloon_target")? * 4096 == bytes
                && sum[1] > 0
            {
                return Ok(sum[0] as f64 / (sum[1] as f64 / 1e6));
            }
            if begin.elapsed() > PATIENCE {
                bail!("the balloon did not reach {bytes} bytes: {report}");
            }
        }
    }
}
