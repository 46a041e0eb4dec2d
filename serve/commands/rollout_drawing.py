"""A rollout as a terminal shows it: the stages, the numbers, the last decisions."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from serve.designs import BUCKETS, Stage
from serve.schemas.rollouts import DecisionCard, RolloutCard

PASSED, HERE, AHEAD = "━━", "●", "──"


def draw_rollout(card: RolloutCard, decisions: Sequence[DecisionCard]) -> Table:
    picture = Table.grid(padding=(0, 0, 1, 0))
    title = f"{card.version} against {card.against}: {tell_status(card)}"
    picture.add_row(Text(f"{title}{' (dry run)' if card.dry_run else ''}"))
    picture.add_row(draw_stages(card))
    picture.add_row(Text(f"{card.reason}{_tell_seen(card)}"))
    if card.waits_for_approval:
        picture.add_row(Text(f"approve: sm4ll rollouts approve {card.id}"))
    metrics = card.numbers.get("metrics") or {}
    if metrics:
        picture.add_row(_draw_metrics(metrics))
    picture.add_row(_draw_decisions(decisions))
    picture.add_row(Text(f"Its pictures and numbers: sm4ll experiments report {card.experiment}"))
    return picture


def tell_status(card: RolloutCard) -> str:
    return card.status.replace("_", " ")


def _tell_seen(card: RolloutCard) -> str:
    """How far it is with what its stage waits for."""
    if card.finished_at is not None or card.stage is None:
        return ""
    seen = card.numbers.get("exposures", 0)
    return f" ({seen} of {card.plan.stages[card.stage].min_exposures})"


def draw_stages(card: RolloutCard) -> Text:
    """`shadow ━━ 1 % ━━ ● 5 % ── 25 %`."""
    stages, here = card.plan.stages, -1 if card.stage is None else card.stage
    if card.status == "promoted":
        here = len(stages)
    words = []
    for index, stage in enumerate(stages):
        mark = f"{HERE} " if index == here else ""
        words.append(f"{mark}{tell_stage(stage)}")
        if index < len(stages) - 1:
            words.append(PASSED if index < here else AHEAD)
    return Text(" ".join(words))


def tell_stage(stage: Stage) -> str:
    return "shadow" if stage.share == 0 else f"{stage.share * 100 / BUCKETS:g} %"


def tell_decision(one: DecisionCard) -> str:
    number, at, action, reason = _parts(one)
    return f"{number:>3}  {at}  {action:<10}  {reason}"


def _parts(one: DecisionCard) -> tuple[str, str, str, str]:
    action = f"would {one.action}" if one.dry_run else one.action
    at = one.at.astimezone().strftime("%m-%d %H:%M:%S")
    return str(one.sequence), at, action.replace("_", " "), one.reason


def _draw_decisions(decisions: Sequence[DecisionCard]) -> Table:
    """Long reasons stay in their column."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in decisions:
        table.add_row(*map(Text, _parts(one)))
    return table


def _draw_metrics(metrics: dict[str, dict[str, float]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("metric", "control", "challenger", "towards worse", "between", "units"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, numbers in metrics.items():
        between = f"{_tell(numbers, 'low')} … {_tell(numbers, 'high')}"
        table.add_row(
            name,
            _tell(numbers, "control_mean"),
            _tell(numbers, "challenger_mean"),
            _tell(numbers, "effect"),
            between,
            f"{numbers.get('control_units', 0):g} / {numbers.get('challenger_units', 0):g}",
        )
    return table


def _tell(numbers: dict[str, float], name: str) -> str:
    """What is not known is not there."""
    return f"{numbers[name]:.4g}" if name in numbers else "?"
