//! `cargo xtask demo`: a FastAPI shop and a Flask stock service with real PostgreSQL and Redis, seen by pitviper.

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{
    agent::{Agent, Show},
    build,
    http::Client,
    interrupt, packages,
    progress::Step,
    services::{
        Service, free_port,
        postgres::Postgres,
        python::{Environment, Interpreter},
        redis::Redis,
        scratch::Scratch,
    },
    workspace,
};

/// After the last response: time for the traces to be completed and printed.
const SETTLE: Duration = Duration::from_secs(3);

/// The sample's processes. Fields drop in order: those that depend on others first, their folder last.
struct Sample {
    shop: Service,
    stock: Service,
    redis: Redis,
    postgres: Postgres,
    shop_port: u16,
    stock_port: u16,
    _scratch: Scratch,
}

/// Runs the demo; with `keep` until Ctrl-C.
pub(crate) fn demo(keep: bool) -> Result<()> {
    if !packages::is_root() {
        bail!("eBPF needs root; please run: sudo -E env \"PATH=$PATH\" cargo xtask demo");
    }
    build::build(true)?;
    let sample = Sample::start()?;
    let step = Step::begin("attach pitviper to these two services");
    let mut agent =
        Agent::start(&[sample.shop.pid(), sample.stock.pid()], &["--console"], &[], Show::Everything)?;
    step.done("");

    let waves = waves();
    let (sum, most) =
        (waves.iter().map(Vec::len).sum::<usize>(), waves.iter().map(Vec::len).max().unwrap_or(0));
    eprintln!("\nSending {sum} requests, up to {most} at once. What pitviper sees of them, from outside:\n");
    send(waves, sample.shop_port)?;
    interrupt::sleep(SETTLE)?;
    if keep {
        sample.print_how_to_use(&agent);
        while !interrupt::requested() {
            thread::sleep(interrupt::POLL);
            agent.check_alive()?;
        }
    }
    agent.stop()?;
    drop(sample);
    if !keep {
        eprintln!("\nEverything has ended. To send requests of your own: cargo xtask demo --keep");
    }
    Ok(())
}

fn folder() -> PathBuf {
    workspace::root().join("xtask/demo")
}

impl Sample {
    fn start() -> Result<Self> {
        let interpreter = Interpreter::find_or_install()?;
        let step = Step::begin(format!("prepare Python {} with the sample's libraries", interpreter.version));
        let python =
            Environment::prepare(&step, &interpreter, "demo/venv", &[&folder().join("requirements.txt")])?;
        step.done("");

        let scratch = Scratch::create("demo")?;
        let step = Step::begin("start PostgreSQL and Redis");
        let postgres = Postgres::start(&step, &scratch, &folder().join("seed.sql"))?;
        let redis = Redis::start(&scratch)?;
        step.done(&format!("{}, {}", postgres.tcp_url(), redis.url()));

        let step = Step::begin("start the services");
        let (shop_port, stock_port) = (free_port()?, free_port()?);
        let [shop_url, stock_url] = [shop_port, stock_port].map(|port| format!("http://127.0.0.1:{port}"));
        let shop = start_service(
            "shop",
            shop_port,
            python
                .command("uvicorn")
                .args([
                    "shop.main:app",
                    "--loop",
                    "uvloop",
                    "--http",
                    "httptools",
                    "--port",
                    &shop_port.to_string(),
                ])
                .env("SHOP_DATABASE", postgres.tcp_url())
                .env("SHOP_CACHE", redis.url())
                .env("SHOP_STOCK", &stock_url),
            scratch.path(),
        )?;
        let stock = start_service(
            "stock",
            stock_port,
            python
                .command("gunicorn")
                .args(["stock.app:app", "--workers", "2", "--bind", &format!("127.0.0.1:{stock_port}")])
                .env("STOCK_DATABASE", postgres.socket_dsn())
                .env("STOCK_CACHE", redis.url())
                .env("STOCK_SHOP", &shop_url),
            scratch.path(),
        )?;
        // The Redis clients introduce themselves on each new connection: not what the traces are to show.
        for port in [shop_port, stock_port] {
            send(vec![vec![get("/health", 200); 24]], port)?;
        }
        step.done(&format!("shop {shop_url} (uvicorn), stock {stock_url} (gunicorn)"));
        Ok(Self { shop, stock, redis, postgres, shop_port, stock_port, _scratch: scratch })
    }

    fn print_how_to_use(&self, agent: &Agent) {
        let Self { shop, stock, redis, postgres, shop_port, stock_port, _scratch } = self;
        eprintln!("\nRunning; traces of your requests appear below. Ctrl-C ends everything.");
        eprintln!("  shop      pid {:<8} http://127.0.0.1:{shop_port}/docs", shop.pid());
        eprintln!("  stock     pid {:<8} http://127.0.0.1:{stock_port}/levels/sku-1", stock.pid());
        eprintln!("  postgres  pid {:<8} {}", postgres.pid(), postgres.tcp_url());
        eprintln!("  redis     pid {:<8} {}", redis.pid(), redis.url());
        eprintln!("  pitviper  pid {}\n", agent.pid());
        eprintln!("  curl http://127.0.0.1:{shop_port}/products/7\n");
    }
}

fn start_service(
    name: &'static str,
    port: u16,
    command: &mut std::process::Command,
    log: &Path,
) -> Result<Service> {
    let mut service = Service::start(name, command.current_dir(folder()), log)?;
    service.wait_for_port(port)?;
    Ok(service)
}

/// Requests that go out together, with the status that each must have.
type Wave = Vec<(&'static str, String, String, u16)>;

fn get(path: &str, status: u16) -> (&'static str, String, String, u16) {
    ("GET", path.to_owned(), String::new(), status)
}

fn waves() -> Vec<Wave> {
    let order = |product: u32, quantity: u32, status| {
        let body = format!("{{\"product_id\": {product}, \"quantity\": {quantity}}}");
        ("POST", "/orders".to_owned(), body, status)
    };
    vec![
        vec![get("/products", 200)],
        vec![get("/products", 200)],
        (1..=8).map(|id| get(&format!("/products/{id}"), 200)).collect(),
        (1..=4).map(|id| order(id, id, 201)).collect(),
        vec![get("/products/3", 200), order(5, 1000, 409), get("/products/99", 404)],
        vec![get("/report", 500)],
    ]
}

/// Sends the waves, one after the other, and checks every status.
fn send(waves: Vec<Wave>, port: u16) -> Result<()> {
    let mut number = 0;
    for wave in waves {
        interrupt::check()?;
        let senders: Vec<_> = wave
            .into_iter()
            .map(|(method, path, body, expected)| {
                number += 1;
                let agent = format!("pitviper-demo/{number}");
                thread::spawn(move || -> Result<()> {
                    let status = Client::connect(port)?.request(method, &path, &agent, &body)?;
                    if status != expected {
                        bail!("{method} {path} of the sample answered {status} instead of {expected}");
                    }
                    Ok(())
                })
            })
            .collect();
        for sender in senders {
            sender.join().unwrap_or_else(|_| bail!("a sender of the load panicked"))?;
        }
    }
    Ok(())
}
