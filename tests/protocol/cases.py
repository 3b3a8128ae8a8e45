"""What happens to a log and to one client of it, and what the client must be told: the cases.

A topic is a letter. `A3` is the third event that the case published to A, whatever its number is in the log. A case is the
same whatever the client reads with; where that is a stream, it stays open from one `Read` to the next, unless it is cut.
At the end of every case each topic gets one more event, which must be all that comes.
"""

import msgspec


class Publish(msgspec.Struct, frozen=True):
    """Events in one batch: `"A B:spin"` is one to A with the default name and one to B with the name `spin`."""

    events: str
    key: str | None = None  # an idempotency key; of one event
    duplicate: bool = False  # the answer must be that of the event which has this key
    by: str = "first"  # the relay that takes it: `first`, or `second`, which keeps 5 events of a topic


class PublishUnread(msgspec.Struct, frozen=True):
    """Events that are gone from the journal before any tail has read them, as where somebody empties it while a relay stands still."""

    events: str


class Gap(msgspec.Struct, frozen=True):
    topic: str
    lost: int | None
    first: int | None  # which of the topic's events is the first retained one; where none is, the next


class Read(msgspec.Struct, frozen=True):
    """The client connects, if it isn't, with the cursor that it has kept, and is told exactly this."""

    events: str = ""
    resume: str = "exact"
    gaps: tuple[Gap, ...] = ()


class ReadSome(msgspec.Struct, frozen=True):
    """The same, but then its connection ends, although there is more: a page ends at its limit, and a stream is cut."""

    events: str
    resume: str = "exact"
    gaps: tuple[Gap, ...] = ()


class Glimpse(msgspec.Struct, frozen=True):
    """A stream that is cut right behind its hello, these gaps, and so many events. They count for the next `Read`."""

    resume: str = "exact"
    gaps: tuple[Gap, ...] = ()
    events: int = 0


class LoseAnswer(msgspec.Struct, frozen=True):
    """The client asks, and nothing of the answer reaches it."""


class Cut(msgspec.Struct, frozen=True):
    """The client's connection ends."""


class Ask(msgspec.Struct, frozen=True):
    """From now on the client asks for this, with the cursor that it has. `start` is what it sends while it has none."""

    topics: str = "A"
    names: str = ""
    k: int = 0
    limit: int = 100
    start: str = "now"


class Claim(msgspec.Struct, frozen=True):
    """The client goes on with a number of its own making in its cursor."""

    n: int


class Strangers(msgspec.Struct, frozen=True):
    """Others are live on a topic, who came with its end and a number of their own making. They stay."""

    topic: str
    n: int


class Mark(msgspec.Struct, frozen=True):
    """The client's state is stored."""


class Back(msgspec.Struct, frozen=True):
    """The client goes on from the state that was stored."""


class Sync(msgspec.Struct, frozen=True):
    """The client's cursor moves past what its filter hid."""


class Trim(msgspec.Struct, frozen=True):
    """Of a topic the log keeps only the newest events. (And no process has others in its memory.)"""

    topic: str
    keep: int


class Quiet(msgspec.Struct, frozen=True):
    """Three times the retention in which nothing comes: nothing is left of these topics, nor of the journal, when that is over."""

    topics: str = "A"


class DropRings(msgspec.Struct, frozen=True):
    """The relays lose what they have in memory, as where the journal was trimmed beyond what they have read."""


class Flush(msgspec.Struct, frozen=True):
    """The whole log is lost, or the shard of one topic. `quiet`: and nothing happens in the new one."""

    topic: str = ""
    quiet: bool = False


class Copy(msgspec.Struct, frozen=True):
    """A copy is made of all that the server holds."""


class Restore(msgspec.Struct, frozen=True):
    """The copy comes into the same server, which goes on living. `emptied`: which was seen to be empty before."""

    emptied: bool = False


class Restart(msgspec.Struct, frozen=True):
    """The first relay is killed and started again; what `meanwhile` says is published to the second one in between."""

    meanwhile: str = ""


Step = (
    Publish
    | PublishUnread
    | Read
    | ReadSome
    | Glimpse
    | LoseAnswer
    | Cut
    | Ask
    | Claim
    | Strangers
    | Mark
    | Back
    | Sync
    | Trim
    | Quiet
    | DropRings
    | Flush
    | Copy
    | Restore
    | Restart
)


class Case(msgspec.Struct, frozen=True):
    name: str
    steps: tuple[Step, ...]
    shards: tuple[int, ...] = (1,)
    ways: tuple[str, ...] = ()  # where it says something, and takes its time; empty: all


def case(name: str, *steps: Step, shards: tuple[int, ...] = (1,), ways: tuple[str, ...] = ()) -> Case:
    return Case(name, steps, shards, ways)


BOTH = (1, 3)
FROM_EARLIEST = Ask(start="earliest")

CASES = [
    # Beginning
    case("without a position it begins at now", Publish("A A"), Read(resume="new"), Publish("A"), Read("A3"), shards=BOTH),
    case("a topic without events is an empty one", Read(resume="new"), Read(), Publish("A A"), Read("A1 A2")),
    case("the earliest is the first retained event", FROM_EARLIEST, Publish("A A"), Read("A1 A2"), Publish("A"), Read("A3"), shards=BOTH),
    case("the earliest of a topic without events", FROM_EARLIEST, Read(), Publish("A"), Read("A1")),
    case("cut before it was told anything", FROM_EARLIEST, Publish("A A"), LoseAnswer(), Read("A1 A2"), shards=BOTH),
    case("k begins with the newest k", Ask(k=2), Publish("A A A"), Read("A2 A3", "new"), Publish("A"), Read("A4"), shards=BOTH),
    case("k of a topic with fewer", Ask(k=5), Publish("A A"), Read("A1 A2", "new"), Publish("A"), Read("A3")),
    case("k of a topic without events", Ask(k=5), Publish("B"), Read("", "new"), Publish("A"), Read("A1")),
    case(
        "k of several topics, in the log's order",
        Ask("AB", k=2),
        Publish("A B A B B X"),
        Read("A1 A2 B2 B3", "new"),
        Publish("B A"),
        Read("B4 A3"),
        shards=BOTH,
    ),
    case(
        "a cut right after the hello loses none of the newest k",
        Ask(k=2),
        Publish("A A A"),
        Glimpse("new"),
        Publish("A A"),
        Read("A2 A3 A4 A5"),
    ),
    case("a cut among the newest k", Ask("AB", k=2), Publish("A B A B"), Glimpse("new", events=1), Read("A1 B1 A2 B2"), shards=BOTH),
    case("a position beats k", FROM_EARLIEST, Publish("A A A"), Read("A1 A2 A3"), Publish("A A A"), Ask(k=1), Read("A4 A5 A6")),
    # Going on
    case("what came while it was away", Read(resume="new"), Cut(), Publish("A A"), Read("A1 A2"), Cut(), Publish("A"), Read("A3")),
    case("nothing came while it was away", Read(resume="new"), Publish("A"), Read("A1"), Cut(), Read(), Publish("A"), Read("A2")),
    case(
        "others came while it was away",
        Read(resume="new"),
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("X Y X"),
        Read(),
        Publish("X A"),
        Read("A2"),
        shards=BOTH,
    ),
    case("a cut right after the hello", Glimpse("new"), Publish("A A"), Read("A1 A2"), shards=BOTH),
    case("a cut right after a resumed hello", Publish("A"), Glimpse("new"), Publish("A A"), Glimpse(), Glimpse(), Read("A2 A3")),
    case(
        "a cut in the middle of a batch",
        Ask("AB", start="earliest"),
        Publish("A B A B A"),
        Glimpse(events=2),
        Publish("B"),
        Glimpse(events=1),
        Read("A1 B1 A2 B2 A3 B3"),
        shards=BOTH,
    ),
    case(
        "an older cursor is good, and more than once",
        FROM_EARLIEST,
        Publish("A A"),
        Read("A1 A2"),
        Mark(),
        Publish("A A"),
        Read("A3 A4"),
        Back(),
        Read("A3 A4"),
        Publish("A"),
        Read("A5"),
        Back(),
        Read("A3 A4 A5"),
    ),
    case("an answer that got lost is given again", Read(resume="new"), Cut(), Publish("A A"), LoseAnswer(), LoseAnswer(), Read("A1 A2")),
    case(
        "a journal that was emptied before it was read",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        PublishUnread("A A"),
        Read("A2 A3"),
        shards=BOTH,
    ),
    # Gaps
    case(
        "a gap is told with its size",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A A A"),
        Trim("A", 2),
        Read("A4 A5", "gap", (Gap("A", 2, 4),)),
        Cut(),
        Publish("A"),
        Read("A6"),
        shards=BOTH,
    ),
    case(
        "a client that never got an event is told the size too",
        Publish("A A"),
        Read(resume="new"),
        Cut(),
        Publish("A A A"),
        Trim("A", 1),
        Read("A5", "gap", (Gap("A", 2, 5),)),
    ),
    case(
        "a cut between hello and gap tells it again",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A A A"),
        Trim("A", 2),
        Glimpse("gap"),
        Glimpse("gap"),
        Read("A4 A5", "gap", (Gap("A", 2, 4),)),
    ),
    case(
        "a cut right after the gap doesn't",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A A A"),
        Trim("A", 2),
        Glimpse("gap", (Gap("A", 2, 4),)),
        Read("A4 A5"),
        shards=BOTH,
    ),
    case(
        "a gap may grow before it is told",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A A A"),
        Trim("A", 2),
        LoseAnswer(),
        Trim("A", 1),
        Read("A5", "gap", (Gap("A", 3, 5),)),
    ),
    case(
        "a gap that grew after it was told is another one",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A A A"),
        Trim("A", 2),
        Glimpse("gap", (Gap("A", 2, 4),)),
        Trim("A", 1),
        Read("A5", "gap", (Gap("A", 1, 5),)),
    ),
    case(
        "a gap up to the end",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A"),
        Trim("A", 0),
        Glimpse("gap", (Gap("A", 2, 4),)),
        Read(),
        Publish("A"),
        Read("A4"),
    ),
    case(
        "what it has had may go", FROM_EARLIEST, Publish("A A A"), Read("A1 A2 A3"), Cut(), Trim("A", 0), Read(), Publish("A"), Read("A4")
    ),
    case("what it had just before may go", FROM_EARLIEST, Publish("A"), Read("A1"), Cut(), Publish("A A"), Trim("A", 2), Read("A2 A3")),
    case(
        "the earliest after a trim", FROM_EARLIEST, Publish("A A A"), Trim("A", 1), Read("A3", "gap", (Gap("A", None, 3),)), Cut(), Read()
    ),
    case(
        "retention by count",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A A A A A A A", by="second"),
        DropRings(),
        Read("A5 A6 A7 A8 A9", "gap", (Gap("A", 3, 5),)),
    ),
    case(
        "with an old cursor k doesn't count, and the gap does",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Ask(k=1),
        Publish("A A A"),
        Trim("A", 2),
        Read("A3 A4", "gap", (Gap("A", 1, 3),)),
    ),
    case(
        "a quiet time is no gap",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Quiet(),
        Read(),
        Cut(),
        Quiet(),
        Publish("A A"),
        Read("A2 A3"),
        shards=BOTH,
    ),
    case(
        "a quiet time is no gap of several topics",
        Ask("AB", start="earliest"),
        Publish("A B"),
        Read("A1 B1"),
        Cut(),
        Quiet("AB"),
        Publish("B A"),
        Read("B2 A2"),
        shards=BOTH,
    ),
    case(
        "what came before a quiet time and left no trace may be missing",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A"),
        Quiet(),
        Publish("A"),
        Read("A4", "gap", (Gap("A", None, 4),)),
        Cut(),
        Publish("A"),
        Read("A5"),
    ),
    case(
        "a gap of one of several topics",
        Ask("ABC", start="earliest"),
        Publish("A B C"),
        Read("A1 B1 C1"),
        Cut(),
        Publish("A B A B C"),
        Trim("B", 1),
        Read("A2 A3 B3 C2", "gap", (Gap("B", None, 3),)),
        Cut(),
        Publish("B"),
        Read("B4"),
        shards=BOTH,
    ),
    case(
        "gaps of several topics may be told again after a cut",
        Ask("AB", start="earliest"),
        Publish("A B"),
        Read("A1 B1"),
        Cut(),
        Publish("A B A B A B"),
        Trim("A", 1),
        Trim("B", 2),
        Glimpse("gap", (Gap("A", None, 4), Gap("B", None, 3))),
        Read("B3 A4 B4", "gap", (Gap("A", None, 4), Gap("B", None, 3))),
        shards=BOTH,
    ),
    # Topics
    case(
        "several topics in one order",
        Ask("ABC", start="earliest"),
        Publish("A B A X C B"),
        Read("A1 B1 A2 C1 B2"),
        Publish("C A"),
        Read("C2 A3"),
        shards=BOTH,
    ),
    case("several topics from now", Ask("ABC"), Publish("A B"), Read(resume="new"), Publish("C B A"), Read("C1 B2 A2"), shards=BOTH),
    case(
        "a topic's cursor serves several of its shard",
        FROM_EARLIEST,
        Publish("B A"),
        Read("A1"),
        Ask("ABD"),
        Publish("B D A B"),
        Read("B2 D1 A2 B3"),
        Publish("B"),
        Read("B4"),
    ),
    case(
        "a cursor of several topics serves one",
        Ask("AB", start="earliest"),
        Publish("A B"),
        Read("A1 B1"),
        Ask("A"),
        Publish("B A"),
        Read("A2"),
        Ask("B"),
        Publish("A B"),
        Read("B3"),
        Publish("B"),
        Read("B4"),
    ),
    case(
        "a topic may be added and dropped",
        Ask("AB"),
        Read(resume="new"),
        Publish("A B"),
        Read("A1 B1"),
        Ask("AC"),
        Publish("B C"),
        Read("C1"),
        Ask("BC"),
        Publish("B C"),
        Read("B3 C2"),
    ),
    case(
        "the number on another topic doesn't count",
        FROM_EARLIEST,
        Publish("A A A B"),
        Read("A1 A2 A3"),
        Ask("B"),
        Publish("B B"),
        Trim("B", 1),
        Read("B3", "gap", (Gap("B", None, 3),)),
        Cut(),
        Publish("B B"),
        Trim("B", 1),
        Read("B5", "gap", (Gap("B", 1, 5),)),
    ),
    case(
        "a cursor of several topics has no number",
        Ask("AB", start="earliest"),
        Publish("A B"),
        Read("A1 B1"),
        Ask("A"),
        Publish("A A"),
        Trim("A", 1),
        Read("A3", "gap", (Gap("A", None, 3),)),
        Cut(),
        Publish("A A"),
        Trim("A", 1),
        Read("A5", "gap", (Gap("A", 1, 5),)),
    ),
    # Numbers that nobody gave
    *(
        case(
            f"what others say they had counted is theirs alone, {n}",
            Publish("A A"),
            Strangers("A", n),
            Read(resume="new"),
            Cut(),
            Publish("A A A"),
            Trim("A", 1),
            Read("A5", "gap", (Gap("A", 2, 5),)),
            shards=BOTH,
        )
        for n in (0, 10**15)
    ),
    case(
        "who says it had counted more than there is is told no number",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Claim(10**15),
        Publish("A A A"),
        Trim("A", 1),
        Read("A4", "gap", (Gap("A", None, 4),)),
        Cut(),
        Publish("A A"),
        Trim("A", 1),
        Read("A6", "gap", (Gap("A", 1, 6),)),
    ),
    # Pages
    case(
        "a limit cuts in the middle",
        Ask(limit=2, start="earliest"),
        Publish("A A X A A A"),
        Read("A1 A2 A3 A4 A5"),
        Publish("A A A"),
        Read("A6 A7 A8"),
    ),
    case(
        "what a limit cut off may go, and be counted",
        Ask(names="update", limit=2, start="earliest"),  # with a filter more is read than finds room
        Publish("A A A A A A A A"),
        ReadSome("A1 A2"),
        Trim("A", 4),
        ReadSome("A5 A6", "gap", (Gap("A", 2, 5),)),
        Trim("A", 1),
        Read("A8", "gap", (Gap("A", 1, 8),)),
    ),
    case(
        "a limit cuts several topics in the middle",
        Ask("ABC", limit=2, start="earliest"),
        Publish("A A A B A C C B A"),
        Read("A1 A2 A3 B1 A4 C1 C2 B2 A5"),
        Publish("C B A C"),
        Read("C3 B3 A6 C4"),
        shards=BOTH,
    ),
    case(
        "a limit of one with many topics",
        Ask("ABCDE", limit=1, start="earliest"),
        Publish("E D C B A A B C D E"),
        Read("E1 D1 C1 B1 A1 A2 B2 C2 D2 E2"),
        shards=BOTH,
    ),
    case("a limit cuts the newest k", Ask(k=3, limit=2), Publish("A A A A"), Read("A2 A3 A4", "new"), Publish("A"), Read("A5")),
    case(
        "a limit cuts the newest k of several topics",  # older ones between these might come too, so there are none
        Ask("ABC", k=2, limit=1),
        Publish("B C A B B C C"),
        Read("A1 B2 B3 C2 C3", "new"),
        Publish("A"),
        Read("A2"),
        shards=BOTH,
    ),
    case(
        "a limit cuts the newest k of several shards",
        Ask("ABC", k=1, limit=1),
        Publish("A B C B C"),
        Read("A1 B2 C2", "new"),
        Publish("B"),
        Read("B3"),
        shards=(3,),
    ),
    case(
        "a limit cuts behind a gap",
        Ask(limit=2, start="earliest"),
        Publish("A"),
        Read("A1"),
        Cut(),
        Publish("A A A A A A"),
        Trim("A", 4),
        Read("A4 A5 A6 A7", "gap", (Gap("A", 2, 4),)),
    ),
    case(
        "a limit cuts before the gap of another topic",
        Ask("AB", limit=2, start="earliest"),
        Publish("A B"),
        Read("A1 B1"),
        Cut(),
        Publish("A A A B B B A"),
        Trim("B", 1),
        Read("A2 A3 A4 B4 A5", "gap", (Gap("B", None, 4),)),
        shards=BOTH,
    ),
    case(
        "a limit counts what is delivered",
        Ask(names="spin", limit=2, start="earliest"),
        Publish("A:spin A A A:spin A A:spin A"),
        Read("A1 A4 A6"),
        shards=BOTH,
    ),
    # Filters
    case(
        "only the names that were asked for",
        Ask(names="spin,win"),
        Read(resume="new"),
        Publish("A A:spin A:win A:other A:spin"),
        Read("A2 A3 A5"),
        Cut(),
        Publish("A A:win A"),
        Read("A7"),
        shards=BOTH,
    ),
    case(
        "what was hidden and let go is counted as lost",
        Ask(names="spin", start="earliest"),
        Publish("A:spin"),
        Read("A1"),
        Cut(),
        Publish("A A A:spin"),
        Trim("A", 1),
        Read("A4", "gap", (Gap("A", 2, 4),)),
    ),
    case(
        "a live client's cursor moves past what is hidden",
        Ask(names="spin", start="earliest"),
        Publish("A:spin"),
        Read("A1"),
        Publish("A A"),
        Sync(),
        Cut(),
        Trim("A", 0),
        Read(),
        Publish("A:spin"),
        Read("A4"),
    ),
    case(
        "a cursor that was moved on knows its number",
        Ask(names="spin", start="earliest"),
        Publish("A:spin"),
        Read("A1"),
        Publish("A A"),
        Sync(),
        Cut(),
        Publish("A A A:spin"),
        Trim("A", 1),
        Read("A6", "gap", (Gap("A", 2, 6),)),
        Cut(),
        Publish("A A"),
        DropRings(),
        Read(),
        Sync(),
        Cut(),
        Publish("A A A A:spin"),
        Trim("A", 1),
        Read("A12", "gap", (Gap("A", 3, 12),)),
    ),
    case(
        "also past what is hidden in the same moment as what isn't",
        Ask(names="spin"),
        Read(resume="new"),
        Publish("A:spin A A"),
        Read("A1"),
        Sync(),
        Cut(),
        Trim("A", 0),
        Read(),
    ),
    case(
        "also past what was hidden while it was away",
        Ask(names="spin", start="earliest"),
        Publish("A:spin"),
        Read("A1"),
        Cut(),
        Publish("A A"),
        Read(),
        Sync(),
        Cut(),
        Trim("A", 0),
        Read(),
    ),
    case(
        "hidden events of several topics",
        Ask("AB", names="spin", start="earliest"),
        Publish("A:spin B"),
        Read("A1"),
        Publish("B A B"),
        Sync(),
        Cut(),
        Trim("A", 0),
        Trim("B", 0),
        Read(),
        Publish("B:spin"),
        Read("B4"),
        shards=(3,),
    ),
    # Keys
    case(
        "a repeated key appends nothing",
        Read(resume="new"),
        Publish("A", key="one"),
        Publish("A", key="one", duplicate=True),
        Publish("A", key="two"),
        Read("A1 A2"),
        Publish("A", key="two", duplicate=True, by="second"),
        Publish("A"),
        Read("A3"),
        Cut(),
        Publish("A", key="one", duplicate=True),
        Read(),
    ),
    case(
        "a key is known although its event is gone",
        FROM_EARLIEST,
        Publish("A", key="one"),
        Publish("A"),
        Read("A1 A2"),
        Trim("A", 0),
        Publish("A", key="one", duplicate=True),
        Publish("A"),
        Read("A3"),
    ),
    # A lost log
    case(
        "a log that was lost while it was away",
        FROM_EARLIEST,
        Publish("A A"),
        Read("A1 A2"),
        Cut(),
        Flush(),
        Publish("A A"),
        Read("A3 A4", "reset", (Gap("A", None, 3),)),
        Cut(),
        Publish("A"),
        Read("A5"),
        shards=BOTH,
    ),
    case(
        "a log that was lost while it was there",
        FROM_EARLIEST,
        Publish("A A"),
        Read("A1 A2"),
        Flush(),
        Read("", "reset", (Gap("A", None, None),)),
        Publish("A"),
        Read("A3"),
        Cut(),
        Publish("A"),
        Read("A4"),
        shards=BOTH,
    ),
    case(
        "a log that was lost, and nobody writes",
        Publish("A"),
        Read(resume="new"),
        Flush(quiet=True),
        Read("", "reset", (Gap("A", None, None),)),
        Cut(),
        Read(),
        Publish("A"),
        Read("A2"),
        ways=("stream", "long poll"),
    ),
    case(
        "now on a shard that has nothing yet is not its earliest",
        Flush(quiet=True),
        Read(resume="new"),
        Cut(),
        Publish("A A"),
        Flush(),
        Read("", "reset", (Gap("A", None, None),)),
        Publish("A"),
        Read("A3"),
        shards=BOTH,
    ),
    case(
        "now on a shard that has nothing yet goes on where it was",
        Flush(quiet=True),
        Glimpse("new"),
        Publish("A A"),
        Read("A1 A2"),
        Cut(),
        Publish("A"),
        Read("A3"),
        shards=BOTH,
    ),
    case(
        "a cut after the hello of a reset",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Flush(),
        Publish("A A"),
        Glimpse("reset"),
        Read("A2 A3"),
        shards=BOTH,
    ),
    case(
        "a reset names every topic",
        Ask("AB", start="earliest"),
        Publish("A B"),
        Read("A1 B1"),
        Cut(),
        Flush(),
        Publish("B"),
        Read("B2", "reset", (Gap("A", None, None), Gap("B", None, 2))),
        Publish("A"),
        Read("A2"),
        shards=BOTH,
    ),
    case(
        "a reset begins with the newest k",
        Ask(k=2),
        Publish("A A A"),
        Read("A2 A3", "new"),
        Cut(),
        Flush(),
        Publish("A A A"),
        Glimpse("reset"),
        Read("A5 A6"),
        Cut(),
        Flush(),
        Publish("A A A"),
        Read("A8 A9", "reset", (Gap("A", None, 8),)),
    ),
    case(
        "a gap after a reset",
        FROM_EARLIEST,
        Publish("A"),
        Read("A1"),
        Cut(),
        Flush(),
        Publish("A"),
        Read("A2", "reset", (Gap("A", None, 2),)),
        Cut(),
        Publish("A A A"),
        Trim("A", 1),
        Read("A5", "gap", (Gap("A", 2, 5),)),
    ),
    case(
        "a key dies with its log",
        Publish("A", key="one"),
        Read(resume="new"),
        Flush(),
        Publish("A", key="one"),
        Cut(),
        Read("A2", "reset", (Gap("A", None, 2),)),
    ),
    case(
        "an older copy comes into the server's one life",
        FROM_EARLIEST,
        Publish("A A A"),
        Copy(),
        Publish("A A"),
        Read("A1 A2 A3 A4 A5"),
        Cut(),
        Restore(),
        Publish("A A A A"),
        Read("A1 A2 A3 A6 A7 A8 A9", "reset", (Gap("A", None, 1),)),
        Cut(),
        Publish("A"),
        Read("A10"),
        shards=BOTH,
    ),
    case(
        "an older copy comes under an open stream",
        FROM_EARLIEST,
        Publish("A A A"),
        Copy(),
        Publish("A A"),
        Read("A1 A2 A3 A4 A5"),
        Restore(),
        Read("A1 A2 A3", "reset", (Gap("A", None, 1),)),
        Publish("A A A"),
        Read("A6 A7 A8"),
        shards=BOTH,
    ),
    case(
        "an older copy comes into a server that was emptied before",
        FROM_EARLIEST,
        Publish("A A A"),
        Copy(),
        Publish("A A"),
        Read("A1 A2 A3 A4 A5"),
        Cut(),
        Restore(emptied=True),
        Publish("A A A A"),
        Read("A1 A2 A3 A6 A7 A8 A9", "reset", (Gap("A", None, 1),)),
    ),
    case(
        "what an older copy has is not lost",
        FROM_EARLIEST,
        Publish("A A A"),
        Read("A1 A2 A3"),
        Cut(),
        Copy(),
        Publish("A A"),
        Restore(),
        Publish("A"),
        Read("A6"),
    ),
    case("a cursor of another log", Ask(start="nosuchlog.1795486597000-90117"), Publish("A"), Read("A1", "reset", (Gap("A", None, 1),))),
    # Shards
    case(
        "a shard that the cursor doesn't name begins at now",
        FROM_EARLIEST,
        Publish("A B"),
        Read("A1"),
        Ask("ABC"),
        Publish("A"),
        Read("A2"),
        Publish("C B"),
        Read("C1 B2"),
        Cut(),
        Publish("B A C"),
        Read("B3 A3 C2"),
        shards=(3,),
    ),
    case(
        "a cursor of several shards serves one of them",
        Ask("ABC", start="earliest"),
        Publish("A B C"),
        Read("A1 B1 C1"),
        Ask("C"),
        Publish("A B C"),
        Read("C2"),
        Ask("CB"),
        Publish("A C"),
        Read("C3"),
        Publish("B"),
        Read("B3"),
        shards=(3,),
    ),
    case(
        "a reset of one shard is one of all",
        Ask("ABC", start="earliest"),
        Publish("A B C"),
        Read("A1 B1 C1"),
        Cut(),
        Publish("A"),
        Flush("B"),
        Publish("B"),
        Read("A1 A2 B2 C1", "reset", (Gap("A", None, 1), Gap("B", None, 2), Gap("C", None, 1))),
        Publish("C B"),
        Read("C2 B3"),
        shards=(3,),
    ),
    case(
        "a shard that is lost under an open stream",
        Ask("ABC", start="earliest"),
        Publish("A B C"),
        Read("A1 B1 C1"),
        Flush("C"),
        Read("A1 B1", "reset", (Gap("A", None, 1), Gap("B", None, 1), Gap("C", None, None))),
        Publish("C A"),
        Read("C2 A2"),
        shards=(3,),
    ),
    # A killed process
    case(
        "a relay that is killed and comes back",
        FROM_EARLIEST,
        Publish("A", key="one"),
        Read("A1"),
        Restart("A A"),
        Publish("A", key="one", duplicate=True),
        Publish("A"),
        Read("A2 A3 A4"),
        Cut(),
        Trim("A", 1),
        Publish("A"),
        Read("A5"),
        ways=("stream", "long poll", "mix"),
    ),
]
