"""Reads pickles without running them.

A pickle is a program for a small machine: loading it calls whatever functions it
names, and a few of its bytes can ask for gigabytes or for ever (a memo with a huge
index, a key that takes 2^60 steps to hash). The machine here has no such parts. It
calls only what its caller lists, hashes text alone, counts what it makes against the
file's budget, and refuses the rest.
"""

import io
import mmap
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

from unsup3d_jax.nets.file_guard import Budget, Refused

# Bytes that one step takes, and one place in a container, about.
_STEP, PLACE = 64, 16
_MARK = object()

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS_AND_TEXT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Function:
    """A name that a pickle may call: what the call gives instead.

    Args:
        call: (arguments of the pickle) -> value, which books what it copies.
    """

    def __init__(self, call: Callable[..., Any]):
        self.call = call


class Stateful:
    """A value that takes a state which a pickle sets after it is made."""

    def set_state(self, state: Any) -> None:
        """Raises Refused if it is no such state."""


class Foreign:
    """A class that is not here, and instances of it; its data is dropped."""

    def __init__(self, name: str):
        self.name = name


def load(
    file: io.BytesIO | mmap.mmap,
    find: Callable[[str, str], Any],
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """What one pickle describes; the file is then behind it.

    Args:
        file: of a kind whose `read` makes no more room than it has bytes.
        find: (module, name) -> a `Function`, a `Foreign` class, or any value.
        budget: of the file.
        persistent: what an id outside of the pickle stands for.

    Returns:
        Nested dictionaries, whose keys are text, lists and tuples (sets are lists)
        of numbers, text, bytes and what `find` and `persistent` give. They may hold
        themselves.

    Raises:
        Refused: if it asks for anything else. Whatever else is raised, it is damaged.
    """
    return _Machine(find, budget, persistent).run(file)


class _Machine:
    def __init__(self, find: Callable, budget: Budget, persistent: Callable | None):
        self._find, self._budget, self._persistent = find, budget, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: io.BytesIO | mmap.mmap) -> Any:
        # The stubs ask for a kind of file that mmap is not said to be.
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            name = opcode.name
            self._budget.take(_STEP)
            if name == "STOP":
                return self._pop()
            self._step(name, argument)
        raise Refused("ends early; the file is damaged.")

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUTS:
            self._memo[argument] = self._top()
        elif name in _GETS:
            self._push(self._memo[argument])
        elif name in _NUMBERS_AND_TEXT:
            self._push(argument)
        elif name in _TUPLES:
            count = _TUPLES[name]
            self._push(tuple(self._pop() for _ in range(count))[::-1])
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name == "GLOBAL":
            self._push(self._named(*argument.split(" ", 1)))
        elif name not in ("PROTO", "FRAME"):
            act = getattr(self, f"_do_{name.lower()}", None)
            if act is None:
                raise Refused(f"asks for {name}, which weights do not need; refused.")
            act(argument)

    # --- the stack ---

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value was expected")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError("a mark where a value was expected")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        self._budget.take(PLACE * len(items))
        return items[::-1]

    def _do_mark(self, _: Any) -> None:
        self._push(_MARK)

    def _do_pop(self, _: Any) -> None:
        self._stack.pop()

    def _do_pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _do_dup(self, _: Any) -> None:
        self._push(self._top())

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    # --- containers; sets are lists, so that nothing is hashed ---

    def _do_tuple(self, _: Any) -> None:
        self._push(tuple(self._to_mark()))

    def _do_list(self, _: Any) -> None:
        self._push(self._to_mark())

    def _do_empty_list(self, _: Any) -> None:
        self._push([])

    _do_empty_set = _do_empty_list
    _do_frozenset = _do_list

    def _do_append(self, _: Any) -> None:
        item = self._pop()
        self._extend([item])

    def _do_appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    _do_additems = _do_appends

    def _extend(self, items: list[Any]) -> None:
        place = self._top()
        if isinstance(place, list):
            place.extend(items)
        elif not isinstance(place, Foreign):
            raise Refused("appends to what is no list; the file is damaged.")

    def _do_empty_dict(self, _: Any) -> None:
        self._push({})

    def _do_dict(self, _: Any) -> None:
        items = self._to_mark()
        self._push({})
        self._set(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set(self._to_mark())

    def _set(self, items: list[Any]) -> None:
        place = self._top()
        if isinstance(place, dict):
            place.update(as_mapping(list(zip(items[::2], items[1::2], strict=True))))
        elif not isinstance(place, Foreign):
            raise Refused("sets an item of what is no dictionary; the file is damaged.")

    # --- what is named ---

    def _named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("names something without text; the file is damaged.")
        return self._find(module, name)

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._push(self._named(module, name))

    def _do_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if isinstance(function, Foreign):
            raise Refused(f"asks for a call of {function.name}; refused.")
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise Refused("asks for a call of what is no function; refused.")
        self._push(function.call(*arguments))

    def _instance(self, kind: Any) -> None:
        """An object of a class is made without a call of it."""
        if not isinstance(kind, Foreign):
            raise Refused("asks for an object of what is no class; refused.")
        self._push(Foreign(kind.name))

    def _do_newobj(self, _: Any) -> None:
        _arguments, kind = self._pop(), self._pop()
        self._instance(kind)

    def _do_newobj_ex(self, _: Any) -> None:
        self._pop()
        self._do_newobj(_)

    def _do_obj(self, _: Any) -> None:
        self._instance(self._to_mark()[0])

    def _do_inst(self, argument: str) -> None:
        self._to_mark()
        self._instance(self._named(*argument.split(" ", 1)))

    def _do_build(self, _: Any) -> None:
        state, made = self._pop(), self._top()
        if isinstance(made, Stateful):
            made.set_state(state)
        # What else a dictionary remembers (the versions of a module), or an object
        # of a class that is not here, is no weight.
        elif not isinstance(made, Foreign | dict):
            raise Refused("sets the state of a plain value; refused.")

    def _do_persid(self, argument: Any) -> None:
        if self._persistent is None:
            raise Refused("refers to something outside of it; refused.")
        self._push(self._persistent(argument))

    def _do_binpersid(self, _: Any) -> None:
        self._do_persid(self._pop())


def as_mapping(pairs: Any) -> dict[str, Any]:
    """A dictionary of pairs; numbers among the keys become text.

    Other keys are left out, with their values: hashing a tuple of tuples can take for
    ever, and no weight has one for its name.

    Raises:
        Refused: if they are no pairs.
    """
    if isinstance(pairs, Mapping):
        pairs = list(pairs.items())
    made = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Refused("has a dictionary of no pairs; the file is damaged.")
        key, value = pair
        if isinstance(key, str | int | float | None):
            made[str(key)] = value
    return made
