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
    title = f"{card.version} against {card.against}: {card.status}"
    picture.add_row(Text(f"{title}{' (dry run)' if card.dry_run else ''}"))
    picture.add_row(draw_stages(card))
    wanted = "" if card.stage is None else f"/{card.plan.stages[card.stage].min_exposures}"
    seen = card.numbers.get("exposures", 0)
    words = f"{card.reason}   exposures {seen}{wanted}"
    picture.add_row(Text(words))
    if card.waits_for_approval:
        picture.add_row(Text(f"approve: sm4ll rollouts approve {card.id}"))
    metrics = card.numbers.get("metrics") or {}
    if metrics:
        picture.add_row(_draw_metrics(metrics))
    picture.add_row(Text("\n".join(map(tell_decision, decisions))))
    return picture


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
    at = one.at.astimezone().strftime("%m-%d %H:%M:%S")
    action = f"would {one.action}" if one.dry_run else one.action
    return f"{one.sequence:>3}  {at}  {action.replace('_', ' '):<10}  {one.reason}"


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
