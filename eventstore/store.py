"""The store: tenants to partitions, one writer for each partition that this process is asked to write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from domain.kernel.decider import Decider
from eventstore.codec import Codec
from eventstore.errors import CorruptLog, WrongSchema
from eventstore.keyring import Keys, StoredKeys
from eventstore.log import PartitionLog
from eventstore.master import MasterKeys, of_environment
from eventstore.memory import MemoryLog
from eventstore.origins import Origins
from eventstore.postgres import PostgresLog, open_pool, refuse_unsafe
from eventstore.sealing import Sealing
from eventstore.together import Together
from eventstore.wakeups import Notifier
from eventstore.writer import Cached, Options, Outcome, Request, Stats, Writer

_CLIENT = uuid5(NAMESPACE_URL, "holdbook:client")
_Streams = tuple[str, ...]


def partition_of(tenant_id: UUID, partitions: int) -> int:
    """Where a tenant lives: the same everywhere and for ever, for a given number of partitions."""
    return int.from_bytes(sha256(tenant_id.bytes).digest()[:8], "big") % partitions


def client_command_id(tenant_id: UUID, principal: str, operation: str, key: str) -> UUID:
    """The command id of a client's request: the same key by the same principal for the same operation is the same command."""
    return uuid5(_CLIENT, "|".join((tenant_id.hex, principal, operation, key)))


class Store:
    """Takes requests of any tenant. Open with :meth:`open` or :meth:`in_memory`, close with :meth:`drain`."""

    def __init__(
        self,
        codec: Codec,
        partitions: int,
        log: Callable[[int], PartitionLog],
        options: Options | None = None,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]] | None = None,
        notifier: Notifier | None = None,
        keys: Keys | None = None,
        master: MasterKeys | None = None,
    ) -> None:
        self.codec, self.partitions, self.options, self.pool = codec, partitions, options or Options(), pool
        self.master, self.sealing = master, Sealing(keys)
        self.origins = Origins(pool, self.sealing, lambda tenant_id: partition_of(tenant_id, partitions))
        self.writers: dict[int, Writer] = {}
        self.waker = asyncio.Event()
        self.wakers = [self.waker]
        """Set whenever this process appends; see :meth:`subscribe`."""
        self._notifier, self._notifying = notifier, None if notifier is None else asyncio.create_task(notifier.run(), name="notifier")
        self._log = log
        self._reads = Together[int, _Streams, Mapping[str, Cached]](self._load)
        self._draining = False

    @classmethod
    async def open(
        cls,
        dsn: str,
        deciders: Iterable[Decider[Any]],
        options: Options | None = None,
        *,
        connections: int = 4,
        wakeups: bool = True,
        master: MasterKeys | None = None,
    ) -> Store:
        """A store on a migrated database; refuses a server that could lose acknowledged answers.

        With ``wakeups`` other processes are told when this one has appended, on one connection more. ``master`` wraps the keys that
        are stored; without it the one of the environment does (:func:`eventstore.master.of_environment`), and where there is none
        either, nothing can be sealed or opened. Raises `WrongMasterKey` when the store knows another key by its id.
        """
        master = of_environment() if master is None else master
        pool = await open_pool(dsn, size=connections)
        try:
            await refuse_unsafe(pool)
            async with pool.connection() as conn:
                row = await (await conn.execute("select partitions from store")).fetchone()
            if row is None:
                raise WrongSchema("The store was never initialised.")
            partitions = int(row[0])
            keys = StoredKeys(pool, master, lambda tenant_id: partition_of(tenant_id, partitions))
            await keys.check()
        except BaseException:
            await pool.close()
            raise
        notifier = Notifier(dsn) if wakeups else None
        return cls(Codec(deciders), partitions, lambda partition: PostgresLog(pool, partition), options, pool, notifier, keys, master)

    @classmethod
    def in_memory(cls, deciders: Iterable[Decider[Any]], options: Options | None = None, *, partitions: int = 1) -> Store:
        """A store that forgets everything when the process ends."""
        return cls(Codec(deciders), partitions, MemoryLog, options)

    def writer(self, tenant_id: UUID) -> Writer:
        """The writer of the tenant's partition."""
        return self._writer(partition_of(tenant_id, self.partitions))

    def _writer(self, partition: int) -> Writer:
        writer = self.writers.get(partition)
        if writer is None:
            writer = self.writers[partition] = Writer(self._log(partition), self.codec, self.options)
            writer.wakers.extend(self.wakers)
            if self._notifier is not None:
                writer.wakers.append(self._notifier.appended)
            if self._draining:
                writer.refuse()  # begun now, it would outlive the draining
        return writer

    def subscribe(self) -> asyncio.Event:
        """An event that is set whenever this process has appended, for one who follows the log and clears it himself."""
        waker = asyncio.Event()
        self.wakers.append(waker)
        for writer in self.writers.values():
            writer.wakers.append(waker)
        return waker

    def submit(self, request: Request) -> Coroutine[Any, Any, Outcome]:
        """See :meth:`eventstore.writer.Writer.submit`."""
        return self.writer(request.tenant_id).submit(request)

    async def state(self, decider: Decider[Any], tenant_id: UUID, stream: str) -> Cached:
        """A stream's state as of now; version 0 when it does not exist for this tenant."""
        return (await self.states(tenant_id, [(decider, stream)]))[0]

    async def states(self, tenant_id: UUID, wanted: Sequence[tuple[Decider[Any], str]]) -> list[Cached]:
        """Several streams' states as of now, read together; see :meth:`state`."""
        loaded = await self._reads.get(partition_of(tenant_id, self.partitions), tuple(stream for _, stream in wanted))
        writer = self.writer(tenant_id)
        return [writer.found(loaded, decider, tenant_id, stream) for decider, stream in wanted]

    async def _load(self, partition: int, wanted: Sequence[_Streams]) -> Mapping[_Streams, Mapping[str, Cached] | Exception]:
        writer = self._writer(partition)
        try:
            loaded = await writer.load(sorted({stream for streams in wanted for stream in streams}))
            return dict.fromkeys(wanted, loaded)
        except CorruptLog as error:  # which must not keep others from what is theirs
            if len(wanted) == 1:
                return {wanted[0]: error}
            return {streams: (await self._load(partition, [streams]))[streams] for streams in wanted}

    async def tenant_key(self, tenant_id: UUID) -> bytes:
        """The tenant's secret for fingerprints, made when first asked for, by whichever process is first."""
        return await self.sealing.tenant_key(tenant_id)

    def stats(self) -> Stats:
        """What all writers of this process did."""
        total = Stats()
        for writer in self.writers.values():
            total.add(writer.stats)
        return total

    @property
    def queued(self) -> int:
        """Commands waiting in this process."""
        return sum(writer.queued for writer in self.writers.values())

    @property
    def queued_bytes(self) -> int:
        """Bytes of the bodies of the commands that wait in this process."""
        return sum(writer.queued_bytes for writer in self.writers.values())

    async def drain(self) -> None:
        """Take no more commands, finish and answer those taken, close the connections."""
        self._draining = True
        await asyncio.gather(*(writer.drain() for writer in self.writers.values()))
        if self._notifier is not None and self._notifying is not None:
            self._notifier.stop()
            await asyncio.wait([self._notifying], timeout=1)
            self._notifying.cancel()  # nobody's answer depends on it
        if self.pool is not None:
            await self.pool.close()
