"""The contract between the services: everything they share passes through the replay buffer.

A *replay buffer* holds synthetic images with what the teacher says of them. Producers insert them,
consumers draw them by priority and say how hard they found them. :mod:`buffer.interface` has the
operations; :func:`buffer.connect.connect` gives a buffer on one Redis server or several, and
:class:`buffer.memory.InMemoryReplayBuffer` is the same in one process, written to be obviously
right::

    replay = connect(BufferTable(capacity=5000), url="redis://localhost:6380", run="mine")
    replay.insert(samples, producer="synthesizer-0", sequence=1)
    batch = replay.sample(256)
    kl = train(batch)
    replay.update_priorities(batch.identities, batch.weights * kl, version=Version(1, step))

What is promised. ``docs/buffer.md`` names the tests that hold each promise.

1. Order. Each operation is atomic and totally ordered within its shard, except where payloads move:
   an insert first reserves slots, which evicts what was in them, and then commits, which shows all
   of it at once; what is evicted between its draw and its fetch is drawn again; priorities are
   updated 1,024 at a time.
2. Immutable samples. A committed sample does not change until it is evicted. An identity (shard,
   incarnation, slot, generation) never names two images, so what it names may be kept for ever.
3. Idempotent inserts. An insert is known by its producer, epoch and sequence; delivering it again
   changes nothing, so one that was not answered may simply be repeated. A newer process under a
   producer's name has a newer epoch, and ends what the older one still inserts.
4. Crash-safe inserts. A producer may die anywhere in an insert: nothing of it is ever seen, and its
   slots are used again, by the ring when it comes round, by others when its lease ends.
5. Exact draws. Draws are independent, with replacement, and each says the probability it was drawn
   with, in closed form over quantised priorities: of all items of all shards, while others insert.
   Importance weights are of these probabilities.
6. Immediate parameters. Sampling parameters act at the next draw, without a pass over the items.
7. Versioned priorities. Of two updates the newer version wins, whichever came last; an update never
   brings an evicted sample back. All are counted: applied, stale or older.
8. Nothing blocks. What the limiter refuses is answered at once, with when to ask again; the client
   waits, and both sides count it. Inserts or draws are always admitted: they cannot stall each
   other.
9. No damaged samples. A payload that is missing, damaged or somebody else's is in no batch: it is
   drawn again, taken out and counted. A server without memory refuses an operation wholly.
10. Lost shards. One that goes away is left out, which is said, and joined again when it is back;
    draws from the others are exact meanwhile.
11. Lost data. A server that has lost its data is filled again by whoever comes next, under a new
    incarnation: nobody has to be restarted.
12. Snapshots. A snapshot holds samples, priorities, ages, counters and parameters. Any kind of
    buffer can be restored from it, under new identities.
13. Agreement. A client whose limits or protocol differ from those of the buffer is refused, and
    told which fields differ.

What is not promised:

* Order across shards.
* Durability beyond the last snapshot. Images are work that can be done again: losing a shard loses
  its samples, not correctness.
* Draws counted once. A draw that was repeated since its answer was lost counts twice for the
  limiter, which then errs by one batch.
* Inserts known for ever. One that is repeated after its shard went away goes to another shard, and
  is there twice if the first comes back with its data.
"""
