"""Lines of the cluster's pods on Kubernetes, several pods at once."""

import re
import zlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from serve.commands.console import err, out
from serve.commands.k8s_access import DEFAULT_NAMESPACE, Context, Namespace, open_control_plane
from serve.commands.k8s_status import parse_duration
from serve.errors import ControlPlaneRefused, NotFound

if TYPE_CHECKING:
    from k8s.control.api import ControlPlane
    from k8s.state.findings import Manifest
    from k8s.state.pod_logs import Wanted

COLOURS = ("cyan", "magenta", "green", "blue", "bright_yellow", "bright_magenta", "bright_cyan")
LEVELS = {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red", "DEBUG": "dim"}
TAIL_LINES = 200
OPERATOR = "the KubeRay operator"


Expert = Annotated[
    str | None, typer.Option(help="Lines of one version, `eye@1`, and of its requests.")
]
Deployment = Annotated[
    str | None, typer.Option(help="Lines of one Serve deployment, `Segmenter-classical`.")
]
Pool = Annotated[str | None, typer.Option(help="Pods of one pool, `router`.")]
Pod = Annotated[str | None, typer.Option(help="One pod, by its name.")]
Head = Annotated[bool, typer.Option("--head", help="Ray's head.")]
Operator = Annotated[bool, typer.Option("--operator", help="The KubeRay operator.")]
Job = Annotated[str | None, typer.Option(help="Pods of a Job: migrate, prefetch or sweep.")]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on; pods that come are joined.")]
Since = Annotated[str | None, typer.Option(help="Such as 10m.")]
Tail = Annotated[
    int | None, typer.Option(min=1, help="So many lines of each pod; 200 without --since.")
]
Previous = Annotated[
    bool, typer.Option("--previous", help="Of the container's run before this one.")
]
Grep = Annotated[str | None, typer.Option(help="Lines that match, a regular expression.")]
Raw = Annotated[bool, typer.Option("--raw", help="Lines as they are, JSON.")]


def logs(
    expert: Expert = None,
    deployment: Deployment = None,
    pool: Pool = None,
    pod: Pod = None,
    head: Head = False,
    operator: Operator = False,
    job: Job = None,
    follow: Follow = False,
    since: Since = None,
    tail: Tail = None,
    previous: Previous = False,
    grep: Grep = None,
    raw: Raw = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    context: Context = None,
) -> None:
    """Print what pods log, of several pods by time.

    Lines of replicas are there because they write them to the log of their container
    (SM4LL_LOG_PIPE, which the rendered manifests set) besides Ray's files. Not there, but in the
    pod below /tmp/ray/session_latest/logs: what Ray's own processes write, what a library prints,
    a crash in native code. Lines of pods that are gone are with whatever collects logs, if anything
    does. Replicas that several versions share log as their deployment: --deployment Experts-NAME.

    For example: sm4ll k8s logs --expert eye@1 --since 10m

    sm4ll k8s logs --pool router -f --grep '"status":5'
    """
    from k8s.state.pod_logs import Wanted

    pattern = _compile(grep)
    wanted = Wanted(expert, deployment, pool, pod, head, job, operator, pattern)
    since_s = None if since is None else max(1, round(parse_duration(since)))
    api = open_control_plane(context)
    pods = find_operator(api) if operator else _find_pods(api, namespace, wanted, follow)
    printer = _Printer(pods, raw)
    if follow:
        where = _namespace_of(pods) if operator else namespace
        _follow(context, where, wanted, (pods, since_s), printer)
        return
    num_lines = tail or (None if since_s else TAIL_LINES)
    if not _print_once(api, pods, wanted, printer, (num_lines, previous, since_s)):
        _explain_nothing(wanted, pods)


def _find_pods(
    api: "ControlPlane", namespace: str, wanted: "Wanted", follow: bool
) -> "tuple[Manifest, ...]":
    """
    Raises:
        NotFound: there is none, and nobody waits for one.
    """
    listed = api.list("v1", "Pod", namespace).items
    pods = tuple(one for one in listed if wanted.takes_pod(one))
    if not pods and not follow:
        raise NotFound(
            "no pod has such lines", remedy=f"`kubectl -n {namespace} get pods` lists them"
        )
    return pods


def _follow(
    context: str | None,
    namespace: str,
    wanted: "Wanted",
    begin: "tuple[tuple[Manifest, ...], int | None]",
    printer: "_Printer",
) -> None:
    """Until Ctrl-C."""
    from k8s.state.following import Follower

    pods, since_s = begin
    follower = Follower(lambda: open_control_plane(context), namespace, wanted, since_s)
    try:
        for one, line in follower.lines(pods):
            printer.print(one, line)
    except KeyboardInterrupt:
        return


def _compile(pattern: str | None) -> "re.Pattern[str] | None":
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as exc:
        raise typer.BadParameter(f"--grep: {exc}") from None


def find_operator(api: "ControlPlane") -> "tuple[Manifest, ...]":
    """
    Raises:
        NotFound: it runs nowhere, as far as one may see.
    """
    from k8s.state.pod_logs import OPERATOR_LABEL

    try:
        pods = api.list("v1", "Pod", None, OPERATOR_LABEL).items
    except ControlPlaneRefused as exc:
        if exc.http_status != 403:
            raise
        raise NotFound(
            f"{OPERATOR} is in a namespace that you may not look into",
            remedy="ask who runs the cluster for its log",
        ) from exc
    if not pods:
        raise NotFound(f"{OPERATOR} runs nowhere", remedy="`sm4ll k8s doctor`")
    return pods


def _namespace_of(pods: "tuple[Manifest, ...]") -> str:
    return str(pods[0]["metadata"]["namespace"])


def _print_once(
    api: "ControlPlane",
    pods: "tuple[Manifest, ...]",
    wanted: "Wanted",
    printer: "_Printer",
    span: tuple[int | None, bool, int | None],
) -> int:
    from k8s.state.findings import name_of
    from k8s.state.pod_logs import main_container, merge_lines

    num_lines, previous, since_s = span
    named = {name_of(one): one for one in pods}
    logs: list[tuple[str, list[str]]] = []
    for name, one in named.items():
        where = str(one["metadata"]["namespace"]), main_container(one)
        try:
            text = api.logs(name, *where, num_lines, previous, since_s)
        except ControlPlaneRefused as exc:
            if exc.http_status not in (400, 404):
                raise
            err.print(f"{name}: has no log ({exc})", markup=False)
            continue
        logs.append((name, [line for line in text.splitlines() if wanted.takes_line(line)]))
    for name, line in merge_lines(logs):
        printer.print(named[name], line)
    return sum(len(lines) for _, lines in logs)


def _explain_nothing(wanted: "Wanted", pods: "tuple[Manifest, ...]") -> None:
    err.print(f"No such line in the logs of {len(pods)} pods.")
    if wanted.expert is None and wanted.deployment is None:
        return
    err.print(
        "What helps: --since 1h (the last 200 lines of each pod were read); and see that the pods"
        " have SM4LL_LOG_PIPE, without which replicas write into the pod only: `kubectl exec POD --"
        " sh -c 'tail -n 50 /tmp/ray/session_latest/logs/serve/*'`.",
        markup=False,
    )


class _Printer:
    """Prefix, time and words of a line; a pod keeps its colour."""

    def __init__(self, pods: "tuple[Manifest, ...]", raw: bool):
        from k8s.state.explain import CLUSTER_LABEL
        from k8s.state.findings import labels_of

        clusters = {labels_of(one).get(CLUSTER_LABEL) for one in pods} - {None}
        self._several = len(clusters) > 1
        self._raw = raw

    def print(self, pod: "Manifest", line: str) -> None:
        from k8s.state.pod_logs import read_line, short_name

        name = short_name(pod, self._several)
        prefix = Text(f"{name} ", style=COLOURS[zlib.crc32(name.encode()) % len(COLOURS)])
        if self._raw:
            out.print(prefix.append(line, style="default"), highlight=False)
            return
        read = read_line(line)
        text = Text.assemble(prefix, (f"{read.time} " if read.time else "", "dim"))
        if read.level not in ("", "INFO"):
            text.append(f"{read.level} ", style=LEVELS.get(read.level, ""))
        text.append(read.text, style="default")
        if read.details:
            text.append(f"  {read.details}", style="dim")
        out.print(text, highlight=False)
        for row in read.stack:
            out.print(Text.assemble(prefix, ("  " + row, "dim")), highlight=False)
