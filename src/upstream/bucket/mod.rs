//! Setting up a bucket or a folder as a cache: what the guides do by hand with `mc`. Each step may
//! be done again; what is there and differs is never overwritten.

mod hint;
mod lifecycle;
mod make_folder;
mod policy;

use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;

use super::folder::{CACHE_INFO, Folder};
use super::put::{Answer, Call, PACE, Pace, Sent, not_taken};
use super::s3::S3;
use super::{Asked, Config, ConfigError, Error, Kind, answer, config, open};
use crate::nix::{CacheInfo, StoreDir};

pub use policy::user_policy;

/// What the guides give a bucket: after the caches of the house (30), as cache.nixos.org.
const PRIORITY: u32 = 40;

/// A bucket or a folder that is to become a cache, with its owner's credentials.
pub struct BucketAdmin {
    place: Place,
    url: Arc<str>,
    pace: Pace,
}

/// What can be set up.
enum Place {
    Bucket(Box<S3>),
    Folder(Folder),
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was done now.
    Done,
    /// It was so before.
    WasThere,
}

/// Why a step was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepError {
    /// The server did not answer, or it refused.
    #[error("{act}")]
    Failed {
        /// What was tried.
        act: &'static str,
        /// What to do instead.
        hint: String,
        /// Why not.
        source: Error,
    },
    /// Something else is there, and it is left as it is.
    #[error("{act}: left as it is: {what}")]
    Differs {
        /// What was tried.
        act: &'static str,
        /// What is there.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A folder has no such thing.
    #[error("{act}: a folder has no such thing")]
    Folder {
        /// What was tried.
        act: &'static str,
        /// What to do instead.
        hint: String,
    },
}

impl StepError {
    /// The status that the server answered with.
    pub fn status(&self) -> Option<u16> {
        self.answer().map(|(status, _)| status)
    }

    /// S3's code of the error, or empty.
    pub fn code(&self) -> &str {
        self.answer().map_or("", |(_, code)| code)
    }

    /// What to do instead: a sentence for people, with the command where there is one.
    pub fn hint(&self) -> &str {
        match self {
            Self::Failed { hint, .. } | Self::Differs { hint, .. } | Self::Folder { hint, .. } => {
                hint
            }
        }
    }

    fn answer(&self) -> Option<(u16, &str)> {
        match self {
            Self::Failed { source, .. } => hint::answer(source),
            Self::Differs { .. } | Self::Folder { .. } => None,
        }
    }
}

/// A step, for its messages and hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Create,
    CacheInfo,
    PublicRead,
    Expire(u32),
}

impl Act {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create the bucket",
            Self::CacheInfo => "write nix-cache-info",
            Self::PublicRead => "let anybody read",
            Self::Expire(_) => "let objects expire",
        }
    }
}

impl BucketAdmin {
    /// From the table of an upstream, whose keys do not matter here; only for `s3://` and
    /// `file:///`. Asks nobody.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let url = config::redact(&config.url);
        let place = match open::kind(config)? {
            Kind::S3(s3) => Place::Bucket(s3),
            Kind::Folder(folder) => Place::Folder(folder),
            Kind::Http(_) => {
                let why = "only s3:// and file:/// can be set up from here";
                return Err(ConfigError::Url { url, why });
            }
        };
        Ok(Self { place, url: url.into(), pace: PACE })
    }

    /// The bucket's name; `None` for a folder.
    pub fn bucket(&self) -> Option<&str> {
        match &self.place {
            Place::Bucket(s3) => Some(&s3.bucket.name),
            Place::Folder(_) => None,
        }
    }

    /// Creates the bucket or the folder.
    pub async fn create(&self) -> Result<Step, StepError> {
        let act = Act::Create;
        let s3 = match &self.place {
            Place::Bucket(s3) => s3,
            Place::Folder(folder) => {
                let asked = self.asked("the folder");
                let made = make_folder::create(folder, &asked).await;
                return made.map_err(|error| self.failed(act, error));
            }
        };
        let asked = self.asked("the bucket");
        let head = self.call(s3, act, Call::bare(Method::HEAD, "", "")).await?;
        if head.status.is_success() {
            return Ok(Step::WasThere);
        }
        let region = &s3.bucket.region;
        let mut call = Call::bare(Method::PUT, "", "");
        // The usual region must not be named, any other must.
        if region != "us-east-1" {
            let constraint = format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            );
            call.sent = Sent::Bytes(constraint.into());
        }
        let answer = self.call(s3, act, call).await?;
        if answer.status.is_success() {
            return Ok(Step::Done);
        }
        let error = not_taken(&answer, &asked);
        let is_ours = hint::answer(&error).is_some_and(|it| it.1 == "BucketAlreadyOwnedByYou");
        if is_ours { Ok(Step::WasThere) } else { Err(self.failed(act, error)) }
    }

    /// Writes `nix-cache-info`, which makes it a cache.
    pub async fn put_cache_info(&self, store_dir: &StoreDir) -> Result<Step, StepError> {
        let act = Act::CacheInfo;
        let asked = self.asked(CACHE_INFO);
        let found = match &self.place {
            Place::Bucket(s3) => {
                let answer = self.call(s3, act, Call::bare(Method::GET, CACHE_INFO, "")).await?;
                match (answer.status.as_u16(), answer::error_code(&answer.body).as_deref()) {
                    (200, _) => Some(answer.body),
                    (404, None | Some("NoSuchKey")) => None,
                    // What cannot be seen is not overwritten.
                    _ => return Err(self.failed(act, not_taken(&answer, &asked))),
                }
            }
            Place::Folder(folder) => make_folder::cache_info(folder, &asked)
                .await
                .map_err(|error| self.failed(act, error))?,
        };
        match found.map(|text| CacheInfo::parse(&text)) {
            Some(Ok(info)) if info.store_dir == *store_dir => return Ok(Step::WasThere),
            Some(Ok(info)) => {
                let what = format!("it is a cache for {}", info.store_dir);
                return Err(self.differs(act, what));
            }
            Some(Err(_)) => return Err(self.differs(act, "it is none that Nix reads".to_owned())),
            None => {}
        }
        let info = CacheInfo {
            store_dir: store_dir.clone(),
            want_mass_query: true,
            priority: Some(PRIORITY),
        };
        let sent = Sent::Bytes(info.to_string().into());
        let written = match &self.place {
            Place::Bucket(s3) => {
                let content_type = Some("text/x-nix-cache-info");
                let call = Call { content_type, sent, ..Call::bare(Method::PUT, CACHE_INFO, "") };
                s3.done(&call, &self.pace, &asked).await.map(|_| ())
            }
            Place::Folder(folder) => folder.put_cache_info(sent, &self.pace, &asked).await,
        };
        written.map(|()| Step::Done).map_err(|error| self.failed(act, error))
    }

    /// Lets anybody read. Not for a folder.
    pub async fn allow_public_read(&self) -> Result<Step, StepError> {
        let act = Act::PublicRead;
        let s3 = self.s3(act)?;
        let bucket = &s3.bucket.name;
        if let Some(found) = self.existing(s3, act, "policy=", "NoSuchBucketPolicy").await? {
            if policy::allows_reading(&found, bucket) {
                return Ok(Step::WasThere);
            }
            return Err(self.differs(act, "the bucket has a policy that says otherwise".to_owned()));
        }
        let wanted = policy::public_read(bucket, s3.bucket.is_aws());
        self.write(s3, act, "policy=", (wanted, "application/json")).await?;
        Ok(Step::Done)
    }

    /// Lets objects expire so many days after they were written. Not for a folder.
    pub async fn expire_after(&self, days: u32) -> Result<Step, StepError> {
        let act = Act::Expire(days);
        let s3 = self.s3(act)?;
        let missing = "NoSuchLifecycleConfiguration";
        if let Some(found) = self.existing(s3, act, "lifecycle=", missing).await? {
            match lifecycle::find(&found) {
                lifecycle::Found::Nothing => {}
                lifecycle::Found::Days(found) if found == days => return Ok(Step::WasThere),
                lifecycle::Found::Days(found) => {
                    let what = format!("objects expire after {found} days");
                    return Err(self.differs(act, what));
                }
                lifecycle::Found::Other => {
                    let what = "the bucket has other rules".to_owned();
                    return Err(self.differs(act, what));
                }
            }
        }
        let mut written = Ok(());
        for wanted in lifecycle::Wanted::ALL {
            let rules = (lifecycle::rules(days, wanted), "application/xml");
            written = self.write(s3, act, "lifecycle=", rules).await;
            // A server that does not know all of it says so with a 400 (MinIO) or a 501.
            let is_too_much = |error: &StepError| matches!(error.status(), Some(400 | 501));
            if !written.as_ref().is_err_and(is_too_much) {
                break;
            }
        }
        written.map(|()| Step::Done)
    }

    /// A part of the bucket's configuration; `None` where it has none.
    async fn existing(
        &self,
        s3: &S3,
        act: Act,
        query: &'static str,
        missing: &str,
    ) -> Result<Option<Bytes>, StepError> {
        let answer = self.call(s3, act, Call::bare(Method::GET, "", query)).await?;
        if answer.status.is_success() {
            return Ok(Some(answer.body));
        }
        match answer::error_code(&answer.body) {
            Some(code) if code == missing => Ok(None),
            _ => Err(self.failed(act, not_taken(&answer, &self.asked("the bucket")))),
        }
    }

    async fn write(
        &self,
        s3: &S3,
        act: Act,
        query: &'static str,
        (text, content_type): (String, &'static str),
    ) -> Result<(), StepError> {
        let (content_type, sent) = (Some(content_type), Sent::Bytes(text.into()));
        let call = Call { content_type, sent, ..Call::bare(Method::PUT, "", query) };
        let done = s3.done(&call, &self.pace, &self.asked("the bucket")).await;
        done.map(|_| ()).map_err(|error| self.failed(act, error))
    }

    async fn call(&self, s3: &S3, act: Act, call: Call<'_>) -> Result<Answer, StepError> {
        let answer = s3.call(&call, &self.pace, &self.asked("the bucket")).await;
        answer.map_err(|error| self.failed(act, error))
    }

    fn s3(&self, act: Act) -> Result<&S3, StepError> {
        match &self.place {
            Place::Bucket(s3) => Ok(s3),
            Place::Folder(_) => {
                Err(StepError::Folder { act: act.name(), hint: hint::of_folder(act) })
            }
        }
    }

    fn asked(&self, object: &str) -> Asked {
        Asked { upstream: Arc::clone(&self.url), object: object.into() }
    }

    fn failed(&self, act: Act, source: Error) -> StepError {
        let hint = hint::of_failure(act, self.bucket(), &source);
        StepError::Failed { act: act.name(), hint, source }
    }

    fn differs(&self, act: Act, what: String) -> StepError {
        let hint = hint::of_difference(act, self.bucket());
        StepError::Differs { act: act.name(), what, hint }
    }
}
