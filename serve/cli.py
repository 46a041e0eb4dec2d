"""`sm4ll`: start the family, try products on, look at what runs."""

import sys

import typer

from serve import __version__
from serve.client import ApiError, ApiUnreachable
from serve.commands import (
    assets,
    batch_files,
    batches,
    bench,
    cluster,
    defaults,
    experiments,
    experts,
    fetch,
    jobs,
    k8s_apply,
    k8s_doctor,
    k8s_logs,
    k8s_render,
    k8s_status,
    keys,
    listing,
    observability,
    outcomes,
    pins,
    plan,
    profile,
    report,
    rollouts,
    served,
    store,
    tenants,
    top,
    tryon,
    usage,
    webhooks,
)
from serve.commands.console import err, out
from serve.errors import ConfigError, Sm4llError

app = typer.Typer(
    name="sm4ll",
    help="Virtual try-on by specialised experts, on one Ray cluster.\n\n"
    "Start with `sm4ll demo` (pictures of all seven experts), or `sm4ll up` and `sm4ll tryon`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(cluster.up)
app.command()(cluster.down)
app.command()(top.top)
app.command()(tryon.tryon)
app.command()(cluster.demo)
app.command()(experts.prepare)
app.command()(profile.profile)
app.command()(plan.plan)

versions = typer.Typer()
versions.callback(invoke_without_command=True)(listing.experts)
versions.command("list")(defaults.list_experts)
versions.command()(defaults.default)
versions.command()(experts.freeze)
versions.command()(fetch.fetch)
for of_version in (served.deploy, served.undeploy, served.served):
    versions.command()(of_version)
app.add_typer(versions, name="experts")

works = typer.Typer(help="Work that is accepted now and done later.", no_args_is_help=True)
works.command("list")(jobs.list_jobs)
for act in (jobs.show, jobs.follow, jobs.cancel):
    works.command()(act)
app.add_typer(works, name="jobs")

matrices = typer.Typer(help="Every product on every person.", no_args_is_help=True)
matrices.command()(batches.create)
matrices.command("list")(batches.list_batches)
for on_batch in (
    *(batches.show, batches.start, batches.follow, batches.pause, batches.resume),
    *(batches.cancel, batches.retry, batch_files.manifest, batch_files.download),
):
    matrices.command()(on_batch)
app.add_typer(matrices, name="batches")

messages = typer.Typer(help="What your servers are told, and how it fared.", no_args_is_help=True)
messages.command()(webhooks.deliveries)
messages.command()(webhooks.redeliver)
messages.command("test")(webhooks.send_test)
signing = typer.Typer(help="The secrets that sign; one is shown once.", no_args_is_help=True)
signing.command("list")(webhooks.list_secrets)
signing.command("rotate")(webhooks.rotate_secret)
messages.add_typer(signing, name="secret")
app.add_typer(messages, name="webhooks")

verdicts = typer.Typer(
    help="What became of answers, for the reports of experiments.", no_args_is_help=True
)
verdicts.command()(outcomes.add)
verdicts.command("import")(outcomes.import_file)
app.add_typer(verdicts, name="outcomes")

fixed = typer.Typer(
    help="Collections that stay on the versions they were begun with.", no_args_is_help=True
)
fixed.command("set")(pins.set_pin)
fixed.command("list")(pins.list_pins)
fixed.command()(pins.show)
fixed.command()(pins.remove)
app.add_typer(fixed, name="pins")

trials = typer.Typer(
    help="Versions that are compared: on whom, and who gets which.", no_args_is_help=True
)
trials.command("list")(experiments.list_experiments)
trials.command()(report.report)
for on_trial in (
    *(experiments.show, experiments.create, experiments.start, experiments.pause),
    *(experiments.resume, experiments.end, experiments.weights, experiments.assign),
):
    trials.command()(on_trial)
app.add_typer(trials, name="experiments")

ways = typer.Typer(
    help="Versions on their way to being the default, by themselves.", no_args_is_help=True
)
ways.command("list")(rollouts.list_rollouts)
for on_way in (
    *(rollouts.start, rollouts.show, rollouts.decisions, rollouts.pause, rollouts.resume),
    *(rollouts.abort, rollouts.approve),
):
    ways.command()(on_way)
app.add_typer(ways, name="rollouts")

kept = typer.Typer(help="Pictures that are uploaded once and used by id.", no_args_is_help=True)
kept.command()(assets.upload)
kept.command("list")(assets.list_assets)
kept.command()(assets.delete)
kept.command()(assets.erase)
app.add_typer(kept, name="assets")

stores = typer.Typer(
    help="The database and the blobs that what must survive is kept in.", no_args_is_help=True
)
stores.command()(store.upgrade)
stores.command()(store.prepare)
stores.command()(store.key)
stores.command()(store.check)
stores.command()(store.sweep)
app.add_typer(stores, name="store")

owners = typer.Typer(
    help="Tenants, their limits and keys, and the log of who changed them.", no_args_is_help=True
)
owners.command("list")(tenants.list_tenants)
for change in (tenants.create, tenants.policy, tenants.disable, tenants.enable):
    owners.command()(change)
secrets = typer.Typer(help="Keys of a tenant; a token is shown once.", no_args_is_help=True)
secrets.command("list")(keys.list_keys)
for of_keys in (keys.create, keys.rotate, keys.revoke):
    secrets.command()(of_keys)
owners.add_typer(secrets, name="keys")
log = typer.Typer(help="The log of administrative acts.", no_args_is_help=True)
log.command("verify")(tenants.verify_audit)
owners.add_typer(log, name="audit")
app.add_typer(owners, name="tenants")

watched = typer.Typer(
    help="Alerts and dashboards, for Prometheus and Grafana.", no_args_is_help=True
)
watched.command()(observability.render)
watched.command()(observability.preview)
app.add_typer(watched, name="observability")

clusters = typer.Typer(
    help="The cluster on Kubernetes, by the KubeRay operator.", no_args_is_help=True
)
clusters.command()(k8s_render.render)
clusters.command()(k8s_doctor.doctor)
clusters.command()(k8s_status.status)
clusters.command()(k8s_status.wait)
clusters.command()(k8s_logs.logs)
for on_cluster in (
    *(k8s_apply.apply, k8s_apply.diff, k8s_apply.rollback),
    *(k8s_apply.history, k8s_apply.delete),
):
    clusters.command()(on_cluster)
app.add_typer(clusters, name="k8s")

app.command()(usage.usage)

benches = typer.Typer(help="Measure; every figure is a ratio within one run.", no_args_is_help=True)
MEASURES = (
    bench.gateway, bench.experts, bench.adapters, bench.packing, bench.admission, bench.fairness,
    bench.sequential, bench.rollouts,
)  # fmt: skip
for measure in MEASURES:
    benches.command()(measure)
benches.command()(bench.gpu)
benches.command()(bench.tenancy)
benches.command()(bench.assignment)
benches.command()(bench.shadow)
benches.command()(bench.scale)
app.add_typer(benches, name="bench")


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


def main() -> None:
    """Entry point: failures with a known cause are said in words and exit 1."""
    try:
        app()
    except ApiError as exc:
        problem = exc.problem
        err.print(f"[red]{problem.title}[/] ({problem.code}, {problem.status})")
        err.print(problem.detail, markup=False)
        if problem.remedy:
            err.print(f"What helps: {problem.remedy}", markup=False)
        sys.exit(1)
    except ApiUnreachable as exc:
        err.print(f"Nothing answers at {exc}", markup=False)
        err.print("What helps: start it with `sm4ll up`, or say where it is with --url.")
        sys.exit(1)
    except ModuleNotFoundError as exc:
        if exc.name != "kubernetes":
            raise
        err.print("`sm4ll k8s` needs the client library of Kubernetes, which is not installed.")
        err.print(
            "What helps, in its clone: pip install -c constraints.txt -e '.[kubernetes]'",
            markup=False,
        )
        sys.exit(1)
    except (Sm4llError, ConfigError, OSError) as exc:
        err.print(str(exc), markup=False)
        remedy = getattr(exc, "remedy", "")
        if remedy:
            err.print(f"What helps: {remedy}", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
