# SPDX-License-Identifier: Apache-2.0
"""The steps of the stateful test: checkouts, operations on a checked-out connection, and operations on the pool."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy import event, text
from sqlalchemy.util import await_only

from tests.support.callers import ERRORS, Call, attempt
from tests.support.drivers import ASYNC, WITH_SERVER
from tests.support.pool_machine import HOUR, VERSION, PoolMachine
from tests.support.reference_parts import AGED, Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine

    from tests.support.pool_machine import Held
    from tests.support.reference_parts import Slot

# Events whose listeners can raise, and the errors that SQLAlchemy handles. Releases before 2.0.50 lost a connection
# whose invalidation or close was interrupted, which the model leaves out.
RAISES = [
    ("checkout", "disconnected"),
    ("checkout", "listener"),
    ("checkin", "listener"),
    ("connect", "listener"),
    ("reset", "listener"),
]
if VERSION > (2, 0, 50):
    RAISES += [("reset", "interrupted")]
# If the reset and the invalidation of a collected connection both fail, SQLAlchemy 2.1 makes a new proxy for it, whose
# collection fails in turn, without end.
if (2, 0, 50) < VERSION < (2, 1):
    RAISES += [("invalidate", "listener"), ("close", "listener")]


def _made(site: int) -> Callable[[Engine], Connection]:
    """Return a function of its own that checks a connection out."""
    names: dict[str, Any] = {"__name__": "made.for.tests"}
    exec(f"def site_{site}(engine): return engine.connect()", names)  # noqa: S102 - as many functions
    function: Callable[[Engine], Connection] = names[f"site_{site}"]
    return function


SITES = [_made(site) for site in range(5)]


class Incidents(PoolMachine):
    """An instrumented engine with every step of the stateful test."""

    # -- listeners that raise

    @precondition(lambda self: not self.model.pool.has_listeners)
    @rule()
    def listen(self) -> None:
        self.model.pool.has_listeners = True  # and so have the pools that replace it
        for name in {name for name, _ in RAISES}:
            event.listen(self.engine, name, self._listener(name))

    def _listener(self, name: str) -> Callable[..., None]:
        raises = self.model.raises

        def listener(*_: object) -> None:
            if name in raises:
                raise ERRORS[raises[name]]

        return listener

    @precondition(lambda self: self.model.pool.has_listeners)
    @rule(raises=st.sampled_from(RAISES))
    def raise_from_listener(self, raises: tuple[str, str]) -> None:
        self.model.raises[raises[0]] = raises[1]

    @precondition(lambda self: self.model.raises)
    @rule()
    def stop_raising(self) -> None:
        self.model.raises.clear()

    # -- checkouts

    @rule(site=st.integers(0, len(SITES) - 1), holder=st.integers(0, 4))
    def connect(self, site: int, holder: int) -> None:
        self.expires = max(self.expires, self.clock.passed) + HOUR
        self.engine.pool._timeout = self.expires - self.clock.passed
        call = Call(
            self.model.connect(f"made.for.tests:site_{site}:1", f"caller-{holder}"), self.expires, SITES[site]
        )
        self.calls.append(call)
        self.runner.start(call, self.engine)
        self._settle()

    @precondition(lambda self: self._can_nest())
    @rule()
    def nest(self) -> None:
        """A caller checks out a second connection while it holds one."""
        slots = []
        for site in range(2):
            caller = self.model.connect(f"made.for.tests:site_{site}:1", "")
            assert caller.at is None
            assert caller.slot is not None
            slots.append(caller.slot)
        raised = [self.model.give_back(slot) for slot in reversed(slots)]

        def act() -> list[str]:
            connections = [SITES[site](self.engine) for site in range(2)]
            for slot, connection in zip(slots, connections, strict=True):
                self._bind(slot, connection)
            del connection
            return [attempt(connections.pop().close)[0] for _ in range(2)]

        assert self.runner.run(act) == raised
        self.model.nested += bool(self.handle)
        self._settle()

    def _can_nest(self) -> bool:
        model = self.model
        room = 2 if model.pool.has_room and (model.pool.max_overflow < 0 or model.pool.keeps_none) else 0
        room = room or len(model.pool.queue) + max(0, model.pool.max_overflow - model.pool.overflow)
        return room >= 2 and not (model.callers or model.raises or model.refuses or model.holds_connects)

    def _waiting(self, at: str) -> list[Call]:
        return [call for call in self.calls if call.caller.at == at]

    @precondition(lambda self: self._waiting("queue"))
    @rule()
    def time_out(self) -> None:
        """The longest waiting caller reaches its pool_timeout."""
        call = self._waiting("queue")[0]
        pool = call.caller.pool.reference()
        self.clock.passed = call.expires + HOUR / 4
        self.runner.expire(pool)
        self.model.resume(call.caller, expired=True)
        self._settle()

    @precondition(lambda self: self._cancellable())
    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        calls = self._cancellable()
        call = calls[number % len(calls)]
        self.model.resume(call.caller, fault=Fault(self.runner.cancel(call)))
        self._settle()

    def _cancellable(self) -> list[Call]:
        # A thread that waits in the queue cannot be cancelled.
        return self._waiting("connect") + (self._waiting("queue") if self.driver in ASYNC else [])

    @rule(holds=st.booleans())
    def hold_connects(self, holds: bool) -> None:
        self.model.holds_connects = holds
        while not holds and self._waiting("connect"):
            self.let_connect(0)

    @precondition(lambda self: self._waiting("connect"))
    @rule(number=st.integers(0, 9))
    def let_connect(self, number: int) -> None:
        calls = self._waiting("connect")
        call = calls[number % len(calls)]
        self.runner.let_connect(call)
        self.model.resume(call.caller)
        self._settle()
        self._collect()

    @rule(refuses=st.sampled_from(["", "refused", "interrupted"]))
    def refuse(self, refuses: str) -> None:
        self.model.refuses = refuses

    # -- operations on a checked-out connection

    def _take(self, number: int) -> Held:
        return self.held.pop(number % len(self.held))

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9))
    def give_back(self, number: int) -> None:
        held = self._take(number)
        if held.checkouts > 1:
            held.checkouts -= 1
            self.held.append(held)
            self.runner.run(held.proxy.close)
            return
        raised = self.model.give_back(held.slot)
        assert self._end(held, held.connection.close) == raised
        self._settle()

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9))
    def check_out_again(self, number: int) -> None:
        held = self.held[number % len(self.held)]
        held.proxy._checkout_existing()
        held.checkouts += 1

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9), commit=st.booleans())
    def use(self, number: int, commit: bool) -> None:
        held = self.held[number % len(self.held)]
        if held.slot.dead:
            self.held.remove(held)
            raised = self.model.invalidate_pool(held.slot) or "dead"
            assert self._end(held, partial(held.connection.execute, text("select 1"))) == raised
            self._settle()
            return
        if commit:
            self.runner.run(lambda: self._commit(held))
        else:
            self.runner.run(lambda: self._begin(held.proxy))
        held.slot.dirty = not commit

    @staticmethod
    def _commit(held: Held) -> None:
        held.connection.execute(text("select 1"))
        held.connection.rollback()

    @staticmethod
    def _begin(proxy: Any) -> None:
        cursor = proxy.cursor()
        cursor.execute("select 1")
        cursor.close()

    @rule()
    def kill(self) -> None:
        if self.driver in WITH_SERVER:
            self.server.terminate(self.name)
        self.runner.run(self._kill_locally)
        self.model.kill()

    def _kill_locally(self) -> None:
        connections = [
            slot.record().dbapi_connection
            for slot in self.model.slots
            if slot.open and slot.record and slot.record()
        ]
        connections += [proxy.dbapi_connection for proxy, _ in self.detached]
        for connection in connections:
            if self.driver == "sqlite":
                connection.close()
            elif self.driver == "aiosqlite":
                await_only(connection.driver_connection.close())
            elif self.driver == "asyncpg":
                # asyncpg learns of the closed connection only when the loop runs.
                while not connection.driver_connection.is_closed():
                    await_only(asyncio.sleep(0.001))

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9), whole_pool=st.booleans())
    def invalidate(self, number: int, whole_pool: bool) -> None:
        held = self._take(number)
        function: Callable[[], object]
        if whole_pool:
            raised = self.model.invalidate_pool(held.slot)
            function = partial(self.engine.pool._invalidate, held.proxy)
        else:
            raised = self.model.invalidate(held.slot)
            function = held.connection.invalidate
        assert self._end(held, function) == raised
        self._settle()

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9))
    def invalidate_softly(self, number: int) -> None:
        held = self.held[number % len(self.held)]
        self.model.invalidate_softly(held.slot)
        self.runner.run(lambda: held.proxy.invalidate(soft=True))

    @precondition(lambda self: self._bound())
    @rule(number=st.integers(0, 9))
    def age(self, number: int) -> None:
        slots = self._bound()
        slot = slots[number % len(slots)]
        slot.made += AGED
        slot.record().starttime += AGED

    def _bound(self) -> list[Slot]:
        return [slot for slot in self.model.slots if slot.open and slot.record and slot.record()]

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9))
    def detach(self, number: int) -> None:
        held = self._take(number)
        proxy = held.proxy
        self.runner.run(held.connection.detach)
        held.connection = None
        self.detached.append((proxy, self.model.detach(held.slot)))
        proxy._counter = 1
        self._settle()

    @precondition(lambda self: self.detached)
    @rule(number=st.integers(0, 9))
    def close_detached(self, number: int) -> None:
        proxy, detached = self.detached.pop(number % len(self.detached))
        functions = [proxy.close]
        del proxy
        raised = self.model.close_detached(detached)
        assert self._call_last(functions) == raised

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9))
    def drop(self, number: int) -> None:
        held = self._take(number)
        connections = [held.connection]
        held.connection = None
        self.model.drop(held.slot)
        self.runner.run_plainly(connections.clear)
        self._settle()

    # -- operations on the pool

    @rule(close=st.booleans())
    def dispose(self, close: bool) -> None:
        raised = self.model.dispose(close=close)
        assert self.runner.run(lambda: attempt(lambda: self.engine.dispose(close=close))[0]) == raised
        if not raised:
            self._note_pool()
        self._settle()

    @rule()
    def dispose_and_go_on(self) -> None:
        raised = self.model.dispose(close=True, replace=False)
        assert self.runner.run(lambda: attempt(self.engine.pool.dispose)[0]) == raised
        self._settle()

    @precondition(lambda self: self.handle)
    @rule()
    def uninstrument(self) -> None:
        assert self.handle
        self.handle.close()
        self.handle = None
        self.model.uninstrument()

    @precondition(lambda self: not self.handle)
    @rule()
    def instrument(self) -> None:
        self._instrument()
