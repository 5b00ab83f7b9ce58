//! `bucket init`: makes a bucket or a folder a cache, step by step, as often as one likes.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use url::Url;

use super::{Ended, out, runtime};
use crate::nix::StoreDir;
use crate::upstream::{self, BucketAdmin, Step, StepError};

#[derive(Debug, Subcommand)]
pub(super) enum BucketCommand {
    /// Make a bucket or a folder a Nix cache; what is there already stays as it is.
    #[command(after_help = INIT_HELP)]
    Init(InitArgs),
    /// Print the policy of the user that pushes into a bucket: read, put and abort, never delete.
    Policy {
        /// The bucket's name, such as nix-cache.
        bucket: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Where: `s3://BUCKET?endpoint=HOST&profile=PROFILE` as Nix writes it, or `file:///FOLDER`.
    url: String,
    /// Leave the bucket for its users alone; else anybody who reaches it may read it.
    #[arg(long)]
    private: bool,
    /// Let objects expire so many days after they were written.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    expire_days: Option<u32>,
    /// A PEM file with the certificate authority of the endpoint.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The AWS credentials file of the bucket's owner.
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// The profile of the bucket's owner, over that of the URL: the one that pushes may not do this.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// The store directory of the Nix clients.
    #[arg(long, value_name = "PATH", default_value = "/nix/store")]
    store_dir: String,
}

const INIT_HELP: &str = "\
Each line tells a step: done, ok (it was so before), or WRONG with what to run instead. At the end
stands the policy of the user that pushes; give it to nixbuilder on the server:

  snowberry bucket policy nix-cache > policy.json
  mc admin policy create s3 nix-cache-write policy.json
  mc admin policy attach s3 nix-cache-write --user nixbuilder

Examples:
  snowberry bucket init --profile minio-admin \\
      's3://nix-cache?profile=nixbuilder&endpoint=s3.homelab.local'
  snowberry bucket init --private --expire-days 90 's3://nix-cache?endpoint=minio.example'
  snowberry bucket init file:///mnt/stick/cache

Exit codes: 0 every step is done or was, 1 a step was refused.";

pub(super) fn run(command: &BucketCommand) -> anyhow::Result<Ended> {
    match command {
        BucketCommand::Init(args) => run_init(args),
        BucketCommand::Policy { bucket } => {
            out::line(&upstream::user_policy(bucket))?;
            Ok(Ended::Well)
        }
    }
}

fn run_init(args: &InitArgs) -> anyhow::Result<Ended> {
    let store_dir = StoreDir::parse(&args.store_dir).context("--store-dir")?;
    let admin = BucketAdmin::new(&upstream_config(args)?)?;
    let runtime = runtime::one_thread()?;
    let ended = runtime::wait(&runtime, init(args, &admin, &store_dir))?;
    if let Some(bucket) = admin.bucket() {
        out::line(&format!(
            "\nThe policy of the user that pushes (nixbuilder in the guides):\n\n{}",
            upstream::user_policy(bucket)
        ))?;
    }
    Ok(ended)
}

async fn init(args: &InitArgs, admin: &BucketAdmin, store_dir: &StoreDir) -> anyhow::Result<Ended> {
    let is_bucket = admin.bucket().is_some();
    let mut ended = Ended::Well;
    let what = if is_bucket { "the bucket" } else { "the folder" };
    if tell(&mut ended, what, admin.create().await)? == Goes::No {
        return Ok(ended);
    }
    let written = admin.put_cache_info(store_dir).await;
    if tell(&mut ended, "nix-cache-info", written)? == Goes::No {
        return Ok(ended);
    }
    if is_bucket && !args.private {
        let allowed = admin.allow_public_read().await;
        if tell(&mut ended, "anybody may read", allowed)? == Goes::No {
            return Ok(ended);
        }
    }
    if let Some(days) = args.expire_days {
        let what = format!("objects expire after {days} days");
        tell(&mut ended, &what, admin.expire_after(days).await)?;
    }
    Ok(ended)
}

/// Whether the next step makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    /// Nobody answers: each further step would wait as long for the same.
    No,
}

fn tell(ended: &mut Ended, what: &str, step: Result<Step, StepError>) -> anyhow::Result<Goes> {
    match step {
        Ok(Step::Done) => out::line(&format!("done  {what}"))?,
        Ok(Step::WasThere) => out::line(&format!("ok    {what}"))?,
        Err(error) => {
            *ended = Ended::Badly;
            let goes = match &error {
                StepError::Failed { .. } if error.status().is_none() => Goes::No,
                StepError::Failed { .. } | StepError::Differs { .. } | StepError::Folder { .. } => {
                    Goes::On
                }
            };
            let hint = error.hint().to_owned();
            out::line(&format!("WRONG {what}: {:#}", anyhow::Error::new(error)))?;
            for line in hint.lines() {
                out::line(&format!("      {line}"))?;
            }
            return Ok(goes);
        }
    }
    Ok(Goes::On)
}

/// The table of an upstream that would be this bucket. Its keys play no part.
fn upstream_config(args: &InitArgs) -> anyhow::Result<upstream::Config> {
    anyhow::ensure!(
        ["s3://", "file:///"].iter().any(|start| args.url.starts_with(start)),
        "{}: only a bucket (s3://...) or a folder (file:///...) can be made a cache",
        args.url
    );
    Ok(upstream::Config {
        url: with_profile(&args.url, args.profile.as_deref())?,
        trusted_public_keys: Vec::new(),
        unsigned: true,
        ca_file: args.ca_file.clone(),
        credentials_file: args.credentials_file.clone(),
        netrc_file: None,
        headers_file: None,
        push: true,
        limit: None,
    })
}

fn with_profile(url: &str, profile: Option<&str>) -> anyhow::Result<String> {
    let Some(profile) = profile else { return Ok(url.to_owned()) };
    let mut url = Url::parse(url).with_context(|| format!("{url:?} is no URL"))?;
    anyhow::ensure!(url.scheme() == "s3", "--profile is for s3:// only");
    let others: Vec<(String, String)> =
        url.query_pairs().into_owned().filter(|(name, _)| name != "profile").collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair("profile", profile);
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_profile_takes_the_place_of_the_one_that_pushes() {
        let guide = "s3://nix-cache?profile=nixbuilder&endpoint=s3.homelab.local";
        assert_eq!(with_profile(guide, None).unwrap(), guide);
        let owner = with_profile(guide, Some("admin")).unwrap();
        assert_eq!(owner, "s3://nix-cache?endpoint=s3.homelab.local&profile=admin");
        assert!(with_profile("file:///x", Some("admin")).is_err());
    }
}
