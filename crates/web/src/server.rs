//! Starting, connections, stopping.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use clasp_data::source::Source;
use clasp_tasks::embed::read_features;
use clasp_tasks::{PassProgress, TaskError};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::app::{App, Note};
use crate::counters::Counters;
use crate::error::ServeError;
use crate::gallery::{Gallery, GalleryStart};
use crate::guard::Guard;
use crate::labels::ServedLabels;
use crate::limits::ServeLimits;
use crate::models::{Compute, Models};
use crate::queue::InferenceQueue;
use crate::routes;
use crate::upload::PERMIT;

/// Time for the head of a request, also of the next one on a connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Most bytes of the head of a request.
const HEAD_BYTES: usize = 32 << 10;
/// Most headers of a request.
const HEADERS: usize = 64;
/// Time after which a connection is closed at the end of its request: a client that reads its
/// answers slowly does not keep one for ever.
const LIFETIME: Duration = Duration::from_secs(600);
/// How often the stop flag is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Threads that talk to clients; models and searches have their own.
const WORKERS: usize = 2;

/// What is served, and how.
pub struct ServeConfig {
    /// Backbones and fine-tuned models.
    pub models: Vec<PathBuf>,
    /// Images, or a Parquet file of features, to search in.
    pub gallery: Option<String>,
    /// Folder that keeps what clients add to the gallery and remove.
    pub store: Option<PathBuf>,
    /// Folder of labels of the gallery's images.
    pub labels: Option<PathBuf>,
    /// Folder of runs.
    pub runs: Option<PathBuf>,
    /// Address.
    pub listen: SocketAddr,
    /// What every request has to carry.
    pub token: Option<String>,
    /// Whether an address that others reach may be served without a token.
    pub insecure: bool,
    /// Names by which the server is reached.
    pub hosts: Vec<String>,
    /// What a request may take.
    pub limits: ServeLimits,
    /// Where models compute.
    pub compute: Compute,
    /// Whether more than 5 % of the gallery's images may be unreadable.
    pub keep_going: bool,
}

/// What happens while serving.
pub struct ServeEvents {
    /// The address that is listened on, when connections are taken.
    pub listening: Box<dyn Fn(SocketAddr) + Send + Sync>,
    /// How much of the gallery is loaded.
    pub progress: Box<dyn Fn(PassProgress) + Send + Sync>,
    /// Something to tell whoever runs the server.
    pub note: Note,
}

/// Serves until `stop` is set; requests that run then are answered.
///
/// # Errors
/// What is to be served cannot be loaded, or the address not be listened on.
pub fn serve(
    config: ServeConfig,
    events: ServeEvents,
    stop: Arc<AtomicBool>,
) -> Result<(), ServeError> {
    let guard = Guard::new(
        config.listen,
        config.token.as_deref(),
        config.insecure,
        &config.hosts,
    )?;
    for (option, folder) in [("--runs", &config.runs), ("--store", &config.store)] {
        if folder
            .as_ref()
            .is_some_and(|path| path.exists() && !path.is_dir())
        {
            return Err(ServeError::Missing {
                what: option.to_owned(),
                expected: "a folder, found a file".to_owned(),
                hint: "choose a folder".to_owned(),
            });
        }
    }
    let models = Models::load(
        &config.models,
        config.compute.clone(),
        config.limits.of_images(),
    )?;
    let labels = config
        .labels
        .as_deref()
        .map(ServedLabels::open)
        .transpose()?;
    let counters = Arc::new(Counters::default());
    let queue = Arc::new(InferenceQueue::new(config.limits, Arc::clone(&counters)));
    let app = Arc::new(App {
        limits: config.limits,
        guard,
        queue: Arc::clone(&queue),
        counters,
        served: models.served().clone(),
        gallery: OnceLock::new(),
        gallery_images: AtomicUsize::new(0),
        labels,
        runs: config.runs.clone(),
        held: Arc::new(Semaphore::new(
            (config.limits.held_bytes() / PERMIT).min(Semaphore::MAX_PERMITS),
        )),
        search: Arc::new(Semaphore::new(1)),
        note: Arc::clone(&events.note),
    });
    if !models.served().infos.iter().any(|info| info.searches) {
        let wanted = [
            ("--gallery", config.gallery.is_some()),
            ("--store", config.store.is_some()),
        ];
        if let Some((option, _)) = wanted.iter().find(|(_, given)| *given) {
            return Err(ServeError::Missing {
                what: (*option).to_owned(),
                expected: "a model to search with".to_owned(),
                hint: "add --model RUN of `clasp finetune reid`, or a backbone".to_owned(),
            });
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let listener = runtime.block_on(TcpListener::bind(config.listen));
    let listener = listener.map_err(|error| ServeError::Listen {
        address: config.listen,
        error,
    })?;
    (events.listening)(listener.local_addr()?);

    // The thread of the models also loads the gallery: until then nothing can be searched.
    let ended = Arc::new(AtomicBool::new(false));
    let compute = {
        let (app, stop, ended) = (Arc::clone(&app), Arc::clone(&stop), Arc::clone(&ended));
        move || {
            let _end = EndOfModels {
                queue: &app.queue,
                ended: &ended,
            };
            let gallery = load_gallery(&models, &config, &events, &stop)?;
            app.set_gallery(gallery);
            app.queue.work(&models);
            Ok(())
        }
    };
    let thread = std::thread::Builder::new()
        .name("models".to_owned())
        .spawn(compute)?;
    let router = routes::router(Arc::clone(&app));
    runtime.block_on(accept(listener, router, &app, || {
        stop.load(Ordering::Relaxed) || ended.load(Ordering::Relaxed)
    }));
    queue.close();
    let loaded = thread.join();
    // Searches that nobody waits for any more are not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match loaded {
        Ok(Err(ServeError::Task(TaskError::Stopped))) if stop.load(Ordering::Relaxed) => Ok(()),
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What ends with the thread of the models, also where it fails or panics: requests that wait for
/// it, and the server.
struct EndOfModels<'a> {
    queue: &'a InferenceQueue,
    ended: &'a AtomicBool,
}

impl Drop for EndOfModels<'_> {
    fn drop(&mut self) {
        self.queue.abandon();
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn load_gallery(
    models: &Models,
    config: &ServeConfig,
    events: &ServeEvents,
    stop: &AtomicBool,
) -> Result<Gallery, ServeError> {
    let Some(channels) = models.search_channels()? else {
        return Gallery::open(GalleryStart::default(), None, "", 0, 0, &|_| {});
    };
    let start = match &config.gallery {
        Some(spec) => gallery_start(models, config, spec, channels, events, stop)?,
        None => GalleryStart::default(),
    };
    let searching = models.served().infos.iter().find(|info| info.searches);
    let model = searching.map_or("", |info| info.sha256.as_str());
    let (store, limit) = (config.store.as_deref(), config.limits.gallery);
    Gallery::open(start, store, model, channels, limit, &|text| {
        (events.note)(text)
    })
}

fn gallery_start(
    models: &Models,
    config: &ServeConfig,
    spec: &str,
    channels: usize,
    events: &ServeEvents,
    stop: &AtomicBool,
) -> Result<GalleryStart, ServeError> {
    if spec.ends_with(".parquet") {
        // A Parquet file has images or features.
        match (read_features(spec.as_ref()), Source::open(spec)) {
            (Ok(embeddings), _) if embeddings.channels == channels => {
                if let Some(origin) = models.search_origin() {
                    embeddings.check_origin(spec.as_ref(), &origin)?;
                }
                return Ok(GalleryStart {
                    embeddings,
                    source: None,
                });
            }
            (Ok(embeddings), _) => {
                return Err(ServeError::Store {
                    file: spec.to_owned(),
                    expected: format!("features of {channels} numbers, as those of the model"),
                    found: embeddings.channels.to_string(),
                    hint: "make it with the backbone that is served".to_owned(),
                });
            }
            (Err(error), Err(_)) => return Err(error.into()),
            (Err(_), Ok(_)) => {}
        }
    }
    let source = Source::open_several(&[spec], config.keep_going)?;
    let progress = |progress: PassProgress| {
        (events.progress)(progress);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let embeddings = models.embed_gallery(&source, config.keep_going, &progress)?;
    for (key, reason) in embeddings.unreadable.failed.iter().take(20) {
        (events.note)(format!("skipped {key}: {reason}"));
    }
    Ok(GalleryStart {
        embeddings,
        source: Some(source),
    })
}

/// Takes connections until `stops`, then waits for those that run.
async fn accept(listener: TcpListener, router: Router, app: &App, stops: impl Fn() -> bool) {
    let places = Arc::new(Semaphore::new(app.limits.connections));
    let (stop, stopping) = watch::channel(false);
    let grace = Duration::from_secs(app.limits.seconds + 5);
    let all = u32::try_from(app.limits.connections).unwrap_or(u32::MAX);
    let stopped = async {
        while !stops() {
            sleep(POLL).await;
        }
    };
    let taking = async {
        loop {
            // Connections above the limit wait in the system's queue.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (router, stopping) = (router.clone(), stopping.clone());
                    let open = app.counters.open_connection();
                    tokio::spawn(async move {
                        connection(stream, router, stopping, grace).await;
                        drop((place, open));
                    });
                }
                // Too many open files: others may close some.
                Err(_) => sleep(POLL).await,
            }
        }
    };
    tokio::select! {
        () = stopped => {}
        () = taking => {}
    }
    drop(listener);
    let _ = stop.send(true);
    let _ = timeout(grace, places.acquire_many(all)).await;
}

/// Serves a connection.
async fn connection(
    stream: TcpStream,
    router: Router,
    mut stopping: watch::Receiver<bool>,
    grace: Duration,
) {
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        // A client that leaves, or sends what is no HTTP, ends its own connection only.
        _ = connection.as_mut() => return,
        _ = stopping.wait_for(|stop| *stop) => {}
        () = sleep(LIFETIME) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(grace, connection).await;
}
