"""Replaces the functions that read the time, and puts the real ones back.

Invariants:
- `datetime` and `date` stay the same classes. Only their methods are replaced, inside the classes.
  So no extension module, pickle or `isinstance` meets another class.
- A function of `time` is replaced in `time` and in each module that holds it. Modules of the
  standard library and callers that need real time keep the real functions.
- A function that a definition keeps is replaced too, for example in a class attribute, a default
  or a dataclass field. If that is impossible, `take_stuck` names the definition once.
- A place that a test has patched keeps the patch. If the patch calls a real function, it calls the
  replacement instead until the end.
- `put_back` finds the replacements that a patch has saved and restored after the end.
- A module is searched once, and again when it is reloaded, when the number of its names changes, or
  when a patch that ends leaves a function in it.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import gc
import sys
import time
from itertools import repeat
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_routilux.frames import is_users
from pytest_routilux.virtual_time.places import Place, Search, item, names_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_tell_modified: Final = ctypes.pythonapi.PyType_Modified
_tell_modified.argtypes, _tell_modified.restype = [ctypes.py_object], None
# The most objects one inside another that are searched: in a module of a user, in a module of a
# library or a patch, and in a value that a test gets.
_DEEP, _FLAT, _NEAR = 10, 4, 2
_KINDS: Final = (BuiltinFunctionType, FunctionType, MethodType, staticmethod, tuple)


class Replacements:
    """The real functions and methods with their replacements."""

    def __init__(
        self,
        functions: Mapping[Any, Any],
        methods: Mapping[type, Mapping[str, Any]],
    ) -> None:
        self.functions = functions
        self.methods = methods
        self.all = [*functions.values(), *(f for named in methods.values() for f in named.values())]
        self._fakes = {id(real): fake for real, fake in functions.items()}
        self._reals = {id(fake): real for real, fake in functions.items()}
        self._method_reals = {
            function: _names_of(kind)[name]
            for kind, named in methods.items()
            for name, function in named.items()
        }
        self.ids = self._fakes.keys() | self._reals.keys()

    def fake_of(self, value: Any) -> Any:
        """Return the replacement of a real function, a real method or a tuple of them, or None."""
        if type(value) is not BuiltinFunctionType:
            return _rebuilt(value, self.fake_of)
        fake = self._fakes.get(id(value))
        owner: Any = value.__self__
        if fake is None and issubclass(type(owner), type):
            for kind, named in self.methods.items():
                if value.__name__ in named and kind in owner.__mro__:
                    return MethodType(named[value.__name__], owner)
        return fake

    def real_of(self, value: Any) -> Any:
        """Return the real function of a replacement, or None."""
        kind = type(value)
        if kind is FunctionType:
            return self._reals.get(id(value))
        if kind is MethodType and type(value.__func__) is FunctionType:
            real = self._method_reals.get(value.__func__)
            return None if real is None else real.__get__(None, value.__self__)
        return _rebuilt(value, self.real_of)

    def is_known(self, value: Any) -> bool:
        """Return whether `value` is a real function, a replacement or a tuple of them."""
        if not issubclass(type(value), _KINDS):
            return False
        return self.fake_of(value) is not None or self.real_of(value) is not None

    def patch_classes(self) -> None:
        """Replace the methods inside their classes."""
        for kind, named in self.methods.items():
            _names_of(kind).update((name, classmethod(fake)) for name, fake in named.items())
            _tell_modified(kind)

    def restore_classes(self) -> None:
        """Put the real methods back."""
        for kind, named in self.methods.items():
            _names_of(kind).update((name, self._method_reals[fake]) for name, fake in named.items())
            _tell_modified(kind)


class _Module(NamedTuple):
    """A module that was searched, with the number of its names and its spec at that time."""

    names: dict[str, Any]
    size: int
    spec: object
    users: bool
    places: list[Place]


class Patches:
    """Replaces functions where they are, and remembers the places."""

    def __init__(self, replacements: Replacements, real_callers: frozenset[str]) -> None:
        self._all = replacements
        self._untouched = real_callers | sys.stdlib_module_names
        self._search = Search(replacements.is_known, real_callers)
        self._marks = {*replacements.ids, *map(id, (time, dt, *replacements.methods))}
        self._time = [item(vars(time), real.__name__, real) for real in replacements.functions]
        self._known: dict[str, _Module] = {}
        self._watched: dict[str, _Module] = {}  # of these, those of users or with places
        self._loaded: dict[str, Any] = {}
        self._dicts: list[dict[str, Any]] = []  # of the known modules
        self._users: list[dict[str, Any]] = []  # of these, those of users
        self._shapes: list[object] = []
        # Modules that were searched while a patch of the present test, or of the present class or
        # module of tests, may have hidden a function.
        self._of_test: set[str] = set()
        self._of_scope: set[str] = set()
        self._installed: list[Place] = []
        self._named: set[str] = set()
        self._counts = self._count()

    def install(self, *roots: dict[str, Any]) -> None:
        """Replace all functions, also in the values of `roots`."""
        self._search_modules()
        of_test = [place for root in roots for place in self._places_in("", root, "", _NEAR)]
        for place in self._places():
            value = place.get()
            if value is place.found:
                continue
            if self._all.fake_of(value) is not None:  # another real function
                of_test.append(place._replace(found=value))
            elif value is not None:
                of_test += self._places_in("", [value], None, _FLAT)
        self._installed = [*self._places(), *of_test]
        self._all.patch_classes()
        for place in self._installed:
            if place.get() is place.found:
                place.put(self._all.fake_of(place.found))

    def uninstall(self) -> None:
        """Put all functions back that are not patched."""
        self._all.restore_classes()
        try:
            self._search_modules()
        finally:
            # A module may be gone or hidden by now, so the installed places count too.
            self._undo([*self._installed, *self._places()])
            self._installed = []

    def put_back(self, *, scope_ended: bool) -> None:
        """Put back what patches have restored since `uninstall`.

        `scope_ended`: patches of a class or module of tests may have ended too.
        """
        unsure = self._of_scope if scope_ended else self._of_test
        again = {n for n, m in self._watched.items() if n in unsure and m.users}
        names = self._watched if scope_ended else unsure
        again |= {n for n in names if n in self._known and self._has_new(self._known[n])}
        for name in again:
            self._search_module(name, self._known[name].names)
        self._of_test.clear()
        if scope_ended:
            self._of_scope.clear()
        if self._count() == self._counts:
            return  # nobody has kept a replacement
        self._undo(self._places())
        if self._count() > self._counts:
            for name, module in list(self._known.items()):
                self._search_module(name, module.names)
            self._undo(self._places())
        self._counts = self._count()

    def take_stuck(self) -> list[str]:
        """Return texts about the real functions that can't be replaced, each once."""
        texts = [f"{path} keeps {_name_of(function)}" for path, function in self._search.stuck]
        self._search.stuck.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._named]
        self._named.update(new)
        return new

    def _places(self) -> Iterator[Place]:
        yield from self._time
        for module in self._watched.values():
            yield from module.places

    def _undo(self, places: Iterable[Place]) -> None:
        for place in places:
            real = self._all.real_of(place.get())
            if real is not None:
                place.put(place.found if _same(real, place.found) else real)

    def _count(self) -> list[int]:
        return [sys.getrefcount(fake) for fake in self._all.all]

    def _search_modules(self) -> None:
        """Search the modules that are new or changed."""
        loaded = sys.modules.copy()
        if loaded != self._loaded or self._shapes_now() != self._shapes:
            before, self._known = self._known, {}
            for name, module in loaded.items():
                names = names_in(module)
                if names is None:
                    continue
                old = before.get(name)
                if (
                    old is not None
                    and old.names is names
                    and old.size == len(names)
                    and old.spec is names.get("__spec__")
                ):
                    self._known[name] = old
                else:
                    self._search_module(name, names)
            self._watched = {n: m for n, m in self._known.items() if m.users or m.places}
            self._loaded = loaded
            self._dicts = [known.names for known in self._known.values()]
            self._users = [known.names for known in self._watched.values() if known.users]
            self._shapes = self._shapes_now()

    def _shapes_now(self) -> list[object]:
        # One pass over the modules for each part, since this runs in every test. A library is
        # hardly ever reloaded, and a look at its spec costs as much as all the rest.
        return [*map(len, self._dicts), *map(dict.get, self._users, repeat("__spec__"))]

    def _has_new(self, module: _Module) -> bool:
        """Return whether names of the module were bound to functions since it was searched."""
        ids = self._all.ids
        if ids.isdisjoint(map(id, module.names.values())):
            return False
        known = {place.key for place in module.places if place.holder is module.names}
        return any(id(value) in ids and key not in known for key, value in module.names.items())

    def _search_module(self, name: str, names: dict[str, Any]) -> None:
        users = is_users(name, names.get("__file__"))
        places: list[Place] = []
        if name.partition(".")[0] in self._untouched:
            self._restore_names(name, names)
        elif users or self._may_keep(names):
            places = self._places_in(name, names, name, _DEEP if users else _FLAT)
        module = _Module(names, len(names), names.get("__spec__"), users, places)
        self._known[name] = self._watched[name] = module
        self._of_test.add(name)
        self._of_scope.add(name)

    def _restore_names(self, name: str, names: dict[str, Any]) -> None:
        # A module that was imported since `install` holds replacements.
        if name != "time" and not self._all.ids.isdisjoint(map(id, list(names.values()))):
            for key, value in list(names.items()):
                if (real := self._all.real_of(value)) is not None:
                    names[key] = real

    def _may_keep(self, names: dict[str, Any]) -> bool:
        values = list(names.values())
        return not self._marks.isdisjoint(map(id, values)) or any(
            issubclass(type(value), (BuiltinFunctionType, MethodType)) and self._all.is_known(value)
            for value in values
        )

    def _places_in(self, path: str, root: Any, module: str | None, deepest: int) -> list[Place]:
        found = []
        for place in self._search.places(path, root, module, deepest):
            real = self._all.real_of(place.found)
            found.append(place if real is None else place._replace(found=real))
        return found


def _names_of(kind: type) -> dict[str, Any]:
    # `vars` of a class is a view of this dict, which alone can change a class that is made in C.
    [names] = gc.get_referents(vars(kind))
    return names  # type: ignore[no-any-return]  # the dict of a class


def _name_of(method: Any) -> str:
    return f"{method.__self__.__name__}.{method.__name__}()"


def _same(one: Any, other: Any) -> bool:
    if type(one) is type(other) is staticmethod:
        one, other = one.__func__, other.__func__
    return bool(one == other)


def _rebuilt(value: Any, convert: Callable[[Any], Any]) -> Any:
    """Return a static method or a tuple with the converted functions, None if there are none."""
    if type(value) is staticmethod:
        found = convert(value.__func__)
        return None if found is None else staticmethod(found)
    kind = type(value)
    if not issubclass(kind, tuple) or kind.__dictoffset__:
        return None
    parts = tuple(tuple.__iter__(value))
    found = [None if issubclass(type(part), tuple) else convert(part) for part in parts]
    if all(new is None for new in found):
        return None
    rebuilt = (old if new is None else new for old, new in zip(parts, found, strict=True))
    return tuple.__new__(kind, rebuilt)  # also of a class made by NamedTuple
