"""A rollout's rows as people read them: the same in an answer, in a list and in a webhook."""

from serve.designs import RolloutPlan
from serve.schemas.rollouts import DecisionCard, RolloutCard, RolloutNews
from serve.store.rollout_tables import Rollout, RolloutDecision, RolloutState


def describe_rollout(row: Rollout) -> RolloutCard:
    plan = RolloutPlan.model_validate(row.plan)
    assert plan.against is not None, "a rollout that was begun knows what it replaces"
    has_begun, is_open = row.stage >= 0, row.finished_at is None
    ended_share = 10_000 if row.state is RolloutState.PROMOTED else 0
    waits = is_open and has_begun and plan.stages[row.stage].approval
    return RolloutCard(
        id=row.id,
        expert=row.expert,
        version=plan.version,
        against=plan.against,
        status=row.state.value,
        reason=row.reason,
        dry_run=plan.is_dry_run,
        stage=row.stage if has_begun else None,
        share=plan.stages[row.stage].share if is_open and has_begun else ended_share,
        waits_for_approval=waits and row.approved_stage != row.stage,
        numbers=row.numbers,
        experiment=row.experiment_id,
        revision=row.revision,
        num_decisions=row.num_decisions,
        plan=plan,
        created_by=row.created_by,
        created_at=row.created_at,
        stage_started_at=row.stage_started_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
    )


def describe_decision(row: RolloutDecision) -> DecisionCard:
    return DecisionCard.model_validate(
        {
            "sequence": row.sequence,
            "at": row.at,
            "actor": row.actor,
            "action": row.action,
            "stage": row.stage if row.stage >= 0 else None,
            "to_stage": row.to_stage,
            "dry_run": row.is_dry_run,
            "reason": row.reason,
            "numbers": row.numbers,
        }
    )


def describe_news(rollout: Rollout, decision: RolloutDecision) -> RolloutNews:
    return RolloutNews(rollout=describe_rollout(rollout), decision=describe_decision(decision))
