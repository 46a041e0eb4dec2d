"""The door to the experts: work waits here, in fair order, until a deployment may be asked.

On the event loop; who is next, and who is refused, is decided in `lane.py`.

Spare work is what nobody waits for: it has a permit only while no other work needs it. What this
gate cannot see is settled where the device is: a replica stops spare work at its next step when
other work comes to it, from whichever router (`deployments.batcher`). Two deployments that are
packed onto one device as fractions of it, or that compute on the same processors, know nothing of
each other's work: there spare work slows the neighbour as any other request of its version would.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from serve.admission.cost import CostModel, count_units
from serve.admission.lane import MIN_RETRY_AFTER_S, Crowd, Lane
from serve.admission.ticket import LOCAL_SHARE, Share, Ticket
from serve.errors import Cancelled, DeadlineExceeded, Overloaded
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.meter import NO_METER, Meter

Ask = Callable[[ExpertRequest], Awaitable[ExpertReply]]
"""Asks a deployment; cancelled, it leaves it."""


class Permit:
    """The right to ask a deployment once."""

    __slots__ = ("_costs", "_num_units", "cost_s", "version")

    def __init__(self, costs: CostModel, version: str, num_units: float):
        self._costs = costs
        self._num_units = num_units
        self.version = version
        self.cost_s = costs.predict(version, num_units)
        """Predicted GPU-seconds."""

    def learn(self, reply: ExpertReply) -> None:
        """Learn from what it really took: this request's share of the pass."""
        measured_s = reply.generate_ms / 1e3 / max(1, reply.batch_size)
        self._costs.observe(self.version, self._num_units, measured_s)


class Gate:
    """Every permit comes back and every place is left, however a caller ends."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        costs: CostModel | None = None,
        unix_time_s: Callable[[], float] = time.time,
        meter: Meter = NO_METER,
    ):
        """
        Args:
            lanes: of every version; versions on the same replicas have the same one.
        """
        self._lanes = dict(lanes)
        self._costs = CostModel() if costs is None else costs
        self._unix_time_s = unix_time_s
        self._meter = meter
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        self._timers: dict[Lane, asyncio.TimerHandle] = {}
        self._spare: dict[Ticket, asyncio.Future[ExpertReply]] = {}

    def add_lane(self, version: str, lane: Lane) -> None:
        """For a version that came later."""
        self._lanes[version] = lane

    def drop_lane(self, version: str) -> None:
        """What has a place or a permit there keeps it."""
        self._lanes.pop(version, None)

    def quote(self, request: ExpertRequest) -> float:
        """Predicted GPU-seconds of a request, as its permit would have them."""
        return self._costs.predict(request.version, count_units(request))

    def predict(self, version: str, num_units: float) -> float:
        """Predicted GPU-seconds of work that is known by its size only; see `cost.count_units`."""
        return self._costs.predict(version, num_units)

    def backlog(self) -> Mapping[str, float]:
        """Predicted GPU-seconds that wait here, per version."""
        return self._per_version(lane.waiting_s() for lane in set(self._lanes.values()))

    def running(self) -> Mapping[str, float]:
        """Predicted GPU-seconds that this router has at the deployments, per version."""
        return self._per_version(lane.running_s() for lane in set(self._lanes.values()))

    def _per_version(self, sums: Iterable[Counter[str]]) -> Mapping[str, float]:
        together: Counter[str] = Counter()
        for one in sums:
            together.update(one)
        return {version: float(together[version]) for version in self._lanes}

    def crowds(self) -> Mapping[str, Crowd]:
        """How many are where, per version; versions on the same replicas share their permits."""
        return {version: lane.crowd(version) for version, lane in self._lanes.items()}

    def resize(self, permits: Mapping[str, int]) -> None:
        """Have so many permits for the lanes of these versions; what may start now does."""
        now_s = asyncio.get_running_loop().time()
        for lane, num in {self._lanes[version]: num for version, num in permits.items()}.items():
            lane.resize(num, now_s)
            if lane.num_waiting:
                self._advance(lane)
            self._reclaim(lane)

    def let_sleep(self, versions: Collection[str]) -> None:
        """These are all whose deployments have no replica now."""
        asleep = {self._lanes[version] for version in versions}
        for lane in self._lanes.values():
            lane.is_asleep = lane in asleep

    @asynccontextmanager
    async def admit(self, request: ExpertRequest, share: Share) -> AsyncIterator[Permit]:
        """Wait for the turn of a request; the permit is held inside the block.

        Raises:
            Overloaded: it would not be done by its deadline, or too much waits.
            DeadlineExceeded: it came too late while it waited.
        """
        loop = asyncio.get_running_loop()
        lane = self._lanes[request.version]
        permit = Permit(self._costs, request.version, count_units(request))
        ticket = Ticket(share, request.version, permit.cost_s, self._deadline_s(request, loop))
        came_s = loop.time()
        try:
            if not lane.offer(ticket, came_s):
                await self._wait(lane, ticket, loop)
            elif lane.num_spare:
                self._reclaim(lane)
            labels = {"version": request.version, "class": share.priority}
            self._meter.observe("sm4ll_queue_wait_seconds", loop.time() - came_s, **labels)
            yield permit
        finally:
            lane.end(ticket, loop.time())
            if lane.num_waiting:
                self._advance(lane)

    async def spare(self, request: ExpertRequest, ask: Ask) -> ExpertReply:
        """Ask a deployment what nobody waits for, if that costs nobody anything.

        It is no load as far as the autoscaler is told, and the deployment's speed is not measured
        by it. Work that needs its permit starts at once, in its place: that the device may still
        be at its present step then is all that it costs.

        Raises:
            Overloaded: no permit is spare; it does not wait for one.
            Cancelled: it was taken back.
            Sm4llError: whatever `ask` raised.
        """
        lane = self._lanes.get(request.version)
        permit = Permit(self._costs, request.version, count_units(request))
        ticket = Ticket(LOCAL_SHARE, request.version, permit.cost_s)
        if lane is None or not lane.lend(ticket):
            raise Overloaded(f"no permit of {request.version} is spare")
        asked = asyncio.ensure_future(ask(replace(request, is_spare=True)))
        self._spare[ticket] = asked
        try:
            reply = await asked
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if ticket in self._spare or (caller is not None and caller.cancelling()):
                raise  # it is the caller who left
            raise Cancelled(f"{request.version} has other work") from None
        finally:
            self._spare.pop(ticket, None)
            lane.end(ticket, asyncio.get_running_loop().time())
        permit.learn(reply)
        return reply

    def _reclaim(self, lane: Lane) -> None:
        for ticket in lane.reclaim():
            self._spare.pop(ticket).cancel()

    def _deadline_s(self, request: ExpertRequest, loop: asyncio.AbstractEventLoop) -> float:
        if request.deadline_unix_s is None:
            return math.inf
        return loop.time() + request.deadline_unix_s - self._unix_time_s()

    async def _wait(self, lane: Lane, ticket: Ticket, loop: asyncio.AbstractEventLoop) -> None:
        turn = self._waiters[ticket] = loop.create_future()
        self._arm(lane)
        try:
            await turn
        finally:
            del self._waiters[ticket]
            if turn.done() and not turn.cancelled():
                turn.exception()  # a caller who left in this very moment does not ask for it

    def _advance(self, lane: Lane) -> None:
        now_s = asyncio.get_running_loop().time()
        turns = lane.advance(now_s)
        if turns.started:
            self._reclaim(lane)
        for ticket in turns.started:
            self._resolve(ticket, None)
        for ticket in turns.expired:
            wait_s = lane.predict_wait_s(ticket, now_s)
            self._resolve(
                ticket,
                DeadlineExceeded(
                    f"{ticket.version} cannot finish it by its deadline any more",
                    retry_after_s=max(MIN_RETRY_AFTER_S, wait_s),
                ),
            )
        self._arm(lane)

    def _resolve(self, ticket: Ticket, error: DeadlineExceeded | None) -> None:
        turn = self._waiters.get(ticket)
        # A caller who left in this very moment gives the permit back when it gets to run.
        if turn is None or turn.done():
            return
        if error is None:
            turn.set_result(None)
        else:
            turn.set_exception(error)

    def _arm(self, lane: Lane) -> None:
        """Wake up when the first waiting item comes too late."""
        expiry_s, timer = lane.next_expiry_s(), self._timers.get(lane)
        if timer is not None:
            if expiry_s is not None and timer.when() <= expiry_s:
                return  # wakes early at worst, and looks again
            timer.cancel()
            del self._timers[lane]
        if expiry_s is not None:
            loop = asyncio.get_running_loop()
            self._timers[lane] = loop.call_at(expiry_s, self._on_expiry, lane)

    def _on_expiry(self, lane: Lane) -> None:
        del self._timers[lane]
        self._advance(lane)
