"""Runs tests of functions that live in another sandbox.

A test sees stand-ins for the candidate's functions. A call goes there with its arguments and comes back
with plain values only, made anew here, so no method of the candidate's takes part in a comparison. What
a test expects never leaves this process. One process serves many candidates, each from a fork of it.

Messages are a length in 4 bytes, then text. Out go `C` and a request to the candidate, or `R` and the
result as JSON. Values on their way are plain (None, booleans, strings) or a list: a tag, then
  i f   an integer in hexadecimal, a float as text (to the candidate numbers go as they are)
  l t s z d k o q   list, tuple, set, frozenset, dict, Counter, OrderedDict, deque: items, keys before values
  b y c g T   bytes, bytearray, complex, range, a built-in type
  S       a slice: start, stop, step
  D F     a Decimal as text, a Fraction: its two integers
  M       of the module datetime: the class's name, then its integers
  r n p   an object that stays there, a name there, a function that stays here
"""

import ast
import builtins
import collections
import copy
import datetime
import decimal
import fractions
import functools
import itertools
import json
import math
import operator
import os
import random
import resource
import signal
import sys

CHANNEL = 1
# What tests use without importing it. The candidate's own of that name is not asked.
MODULES = {"bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq",
           "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "sys"}
TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple,
                                          dict, set, frozenset, range, type, object)}

# Names that tests take from the standard library without importing them. A candidate's own of that name is asked
# only where the tests have nothing else to test.
LIBRARY = {"isclose": math.isclose, "fabs": math.fabs, "isnan": math.isnan, "isinf": math.isinf,
           "Counter": collections.Counter, "OrderedDict": collections.OrderedDict,
           "defaultdict": collections.defaultdict, "deque": collections.deque, "deepcopy": copy.deepcopy,
           "reduce": functools.reduce, "chain": itertools.chain}

# What makes the values of the module datetime.
INTEGERS = {"date": ("year", "month", "day"),
            "datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond"),
            "timedelta": ("days", "seconds", "microseconds")}

# Longest message to the candidate, as `functions.rs` has it.
MESSAGE_BYTES_MAX = 16 << 20
# What an answer may cost: 1 for each value, more for those that take hundreds of bytes when they are empty.
COST_MAX = 1 << 21
COSTS = {"q": 16, "k": 8, "o": 8, "r": 8, "d": 4, "s": 4, "z": 4}
DEPTH_MAX = 300
# Longest number: reading and writing one takes time by the square of its digits.
DIGITS_MAX = 160_000
# The same in hexadecimal, and for the texts of other numbers.
TEXT_LENS_MAX = {"i": 1 << 17, "f": 64, "c": 64, "D": DIGITS_MAX}

# Whether the candidate has fallen silent: a test that catches everything must not pass for it.
gone = []
# Whether it has been asked for more than its names. Until then whatever goes wrong is the tests' doing, from
# then on it may be the candidate's.
asked = []


def exactly(length):
    parts = []
    while length:
        part = os.read(CHANNEL, min(length, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def receive():
    return exactly(int.from_bytes(exactly(4), "little")).decode("utf-8", "surrogatepass")


def send(kind, text):
    data = kind + text.encode("utf-8", "surrogatepass")
    data = len(data).to_bytes(4, "little") + data
    while data:
        data = data[os.write(CHANNEL, data):]


class Gone(Exception):
    """The candidate's process has ended, or answers nonsense."""

    def __init__(self, text):
        super().__init__(text)
        gone.append(text)


class BadTests(Exception):
    """The tests can't be run, whatever the candidate is."""


class Missing(Exception):
    """The candidate lacks what the tests call."""


# Objects of the candidate's by their number, and functions of the tests' by theirs.
remotes = {}
functions = []


def exact(value):
    """A Decimal, Fraction, date, datetime or timedelta as plain values. With a time zone it is none."""
    kind, module = type(value).__name__, sys.modules.get(type(value).__module__)
    # A module that isn't loaded has no values.
    if module is None or getattr(module, kind, None) is not type(value):
        return None
    if (module.__name__, kind) == ("decimal", "Decimal"):
        return ["D", str(value)]
    if (module.__name__, kind) == ("fractions", "Fraction"):
        return ["F", value.numerator, value.denominator]
    if module.__name__ != "datetime" or kind not in INTEGERS or getattr(value, "tzinfo", None):
        return None
    return ["M", kind, *[getattr(value, name) for name in INTEGERS[kind]]]


def packed(value):
    """A value as an expression of plain values."""
    if value is None or type(value) in (bool, int, str, float, bytes, complex):
        return value
    kind = type(value)
    if isinstance(value, Remote):
        return list(object.__getattribute__(value, "_place"))
    if isinstance(value, (dict, collections.OrderedDict, collections.Counter)):
        tag = "k" if isinstance(value, collections.Counter) else "d"
        tag = "o" if isinstance(value, collections.OrderedDict) else tag
        return [tag, *[packed(part) for pair in value.items() for part in pair]]
    for base, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z"), (collections.deque, "q")):
        if isinstance(value, base):
            return [tag, *[packed(part) for part in value]]
    if kind is bytearray:
        return ["y", bytes(value)]
    if kind is range:
        return ["g", value.start, value.stop, value.step]
    if kind is slice:
        return ["S", packed(value.start), packed(value.stop), packed(value.step)]
    if kind is type and TYPES.get(value.__name__) is value:
        return ["T", value.__name__]
    if found := exact(value):
        return found
    if callable(value):
        functions.append(value)
        return ["p", len(functions) - 1]
    if isinstance(value, (int, str, float)):
        return packed({int: int, str: str, float: float}[
            next(base for base in (int, str, float) if isinstance(value, base))](value))
    if hasattr(value, "__iter__"):
        return ["l", *[packed(part) for part in value]]
    text = f"a test passes a {kind.__name__}, which can't be sent to another process"
    # A test may pass on what it made of an answer.
    raise TypeError(text) if asked else BadTests(text)


def check_size(tree):
    """Refuses an answer that would take too much memory here, or too deep a stack."""
    cost, depth, level = 0, 0, [tree]
    while level:
        depth += 1
        inner = []
        for part in level:
            is_list = type(part) is list
            tag = part[0] if is_list and part and type(part[0]) is str else ""
            cost += COSTS.get(tag, 1)
            if is_list and tag not in ("i", "f", "c", "b", "y", "T", "r"):
                inner.extend(part[1:] if tag else part)
        if cost > COST_MAX or depth > DEPTH_MAX:
            raise Gone("an answer that is too large")
        level = inner


def unpacked(tree):
    """The value that came as JSON. Nothing in it is trusted."""
    if tree is None or type(tree) in (bool, str):
        return tree
    if type(tree) is not list or not tree or type(tree[0]) is not str:
        raise Gone("an answer that is none")
    tag, *rest = tree
    try:
        if tag in TEXT_LENS_MAX and any(len(text) > TEXT_LENS_MAX[tag] for text in rest):
            raise Gone("a number that is too long")
        if tag == "i":
            return int(rest[0], 16)
        if tag == "f":
            return float(rest[0])
        if tag == "c":
            return complex(float(rest[0]), float(rest[1]))
        if tag in ("b", "y"):
            return (bytes if tag == "b" else bytearray).fromhex(rest[0])
        if tag == "T":
            return TYPES[rest[0]]
        if tag == "r":
            return remote(("r", operator.index(rest[0])))
        if tag == "D":
            return decimal.Decimal(rest[0])
        values = [unpacked(part) for part in rest]
        if tag == "F":
            return fractions.Fraction(*map(operator.index, values))
        if tag == "M":
            return {kind: getattr(datetime, kind) for kind in INTEGERS}[values[0]](*values[1:])
        if tag in ("d", "k", "o"):
            made = dict(zip(values[::2], values[1::2]))
            return {"d": dict, "k": collections.Counter, "o": collections.OrderedDict}[tag](made)
        return {"l": list, "t": tuple, "s": set, "z": frozenset, "q": collections.deque,
                "g": lambda parts: range(*parts)}[tag](values)
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise Gone("an answer that is none") from error


def ask(*request):
    """Sends a request to the candidate; the answer's value and the arguments that it changed."""
    to_candidate(request)
    asked.append(True)
    while True:
        reply = reply_of()
        if reply[0] == "value":
            return unpacked(reply[1]), reply[2]
        if reply[0] == "error":
            raise translated(reply, request[0])
        # A function of the tests is called back. It isn't sent what it must not see: its own arguments.
        args = unpacked(reply[2])
        if type(reply[1]) is not int or not 0 <= reply[1] < len(functions):
            raise Gone("an answer that is none")
        to_candidate(["answer", packed(functions[reply[1]](*args))])


def to_candidate(request):
    text = repr(list(request))
    if 4 * len(text) > MESSAGE_BYTES_MAX and len(text.encode("utf-8", "surrogatepass")) >= MESSAGE_BYTES_MAX:
        # An argument of the tests' own, or one that the candidate has filled.
        raise Gone("arguments that are too large") if asked else BadTests("a test passes too large an argument")
    send(b"C", text)


def small(digits):
    """A number that comes as one: where something is. Those of values are texts, and may be long."""
    if len(digits) > 9:
        raise ValueError(digits[:9])
    return int(digits)


def refused(text):
    raise ValueError(text[:9])


def reply_of(bytes_max=MESSAGE_BYTES_MAX):
    """What the candidate says next. Nothing in it is trusted."""
    try:
        text = receive()
        if not text:
            raise Gone("it ended")
        if len(text) > bytes_max:
            raise Gone("an answer that is too large")
        reply = json.loads(text, parse_int=small, parse_float=refused, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise Gone("an answer that is none") from error
    if type(reply) is not list or len(reply) < 3:
        raise Gone("an answer that is none")
    check_size(reply)
    return reply


# What ends a loop of the tests' own where it is raised in what the loop calls: `all(map(f, xs))` would pass.
ENDS = {"StopIteration", "StopAsyncIteration", "GeneratorExit"}


def translated(reply, what):
    """The exception that the candidate raised, as the built-in one that it is or derives from."""
    names = unpacked(reply[1])
    named, text = (unpacked(reply[2]), unpacked(reply[3])) if len(reply) > 3 else ("error", "")
    named, text = (part if type(part) is str else "error" for part in (named, text))
    for name in names if type(names) is list else []:
        if type(name) is not str or name in ENDS and (name, what) != ("StopIteration", "next"):
            break
        kind = getattr(builtins, name, None)
        # What would end this process, or looks like one of our own, is none of theirs.
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                # A KeyError's text is the key as code has it.
                return kind(ast.literal_eval(text[:1000]) if kind is KeyError else text)
            except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
                break
    return RuntimeError(f"{named}: {text}")


def remote(place):
    if place not in remotes:
        remotes[place] = Remote(place)
    return remotes[place]


class Remote:
    """Something of the candidate's that is not a plain value. Equal to itself only."""

    def __init__(self, place):
        object.__setattr__(self, "_place", place)

    def __call__(self, *args, **kwargs):
        args = [list(arg) if isinstance(arg, (map, filter, zip)) else arg for arg in args]
        sent = ["t", *[packed(arg) for arg in args]]
        named = ["d", *[part for name, arg in kwargs.items() for part in (name, packed(arg))]]
        value, changed = ask("call", packed(self), sent, named)
        for idx, tree in changed:
            update(args[int(idx[:9])], unpacked(tree))
        return value

    def __getattr__(self, name):
        return ask("get", packed(self), name)[0]

    def __setattr__(self, name, value):
        ask("set", packed(self), name, packed(value))

    def __iter__(self):
        return ask("apply", packed(self), "iter")[0]

    def __next__(self):
        return ask("next", packed(self))[0]

    def __len__(self):
        return operator.index(ask("apply", packed(self), "len")[0])

    def __bool__(self):
        return ask("apply", packed(self), "bool")[0] is True

    def __str__(self):
        return str(ask("apply", packed(self), "str")[0])

    def __repr__(self):
        return str(ask("apply", packed(self), "repr")[0])

    def __getitem__(self, key):
        return ask("item", packed(self), packed(key))[0]

    __hash__ = object.__hash__


def update(arg, value):
    """An argument that the candidate changed in its place is changed in ours."""
    if isinstance(arg, (list, bytearray)):
        arg[:] = value
    elif isinstance(arg, (dict, set)):
        arg.clear()
        arg.update(value)


def free_names(trees):
    """Names that the tests use and don't define."""
    used, defined = [], set()
    for node in itertools.chain.from_iterable(ast.walk(tree) for tree in trees):
        if isinstance(node, ast.Name):
            (used.append if isinstance(node.ctx, ast.Load) else defined.add)(node.id)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return [name for name in dict.fromkeys(used) if name not in defined]


def subjects(trees, entry_point):
    """The names that the candidate has to bring. That is said by the tests alone: a candidate's `abs` or
    `sorted` must not take the place of the real one around the function that is tested."""
    names = free_names(trees)
    own = [name for name in names
           if not hasattr(builtins, name) and name not in MODULES and name not in LIBRARY]
    if own or entry_point:
        return own
    # The function that is tested has the name of one that comes with Python: it is the one called innermost.
    def called(tree):
        return [node.func.id for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]

    innermost = set()
    for node in itertools.chain.from_iterable(ast.walk(tree) for tree in trees):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if not any(called(part) for part in itertools.chain(node.args, node.keywords)):
                innermost.add(node.func.id)
    return [name for name in names if name in innermost]


def not_imported(trees, names):
    """Of names that the tests don't define those of modules: the tests take parts of them, and call none. A
    candidate that brought one would be asked whether its own answers are right."""
    nodes = list(itertools.chain.from_iterable(ast.walk(tree) for tree in trees))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    bases = {node.value.id for node in nodes
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return [name for name in names if name in bases and name not in called]


def self_judging(trees, names):
    """The first of the candidate's functions that a test asks whether an answer of another one is what is
    expected, as in `assert same(f(1), 3)`; none for most tests."""
    def called(tree):
        return {node.func.id for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)} & names

    for node in itertools.chain.from_iterable(ast.walk(tree) for tree in trees):
        test = node.test if isinstance(node, ast.Assert) else None
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id in names:
            answers = [called(arg) - {test.func.id} for arg in test.args]
            if any(answers) and any(is_literal(arg) for arg in test.args):
                return test.func.id
    return None


def is_literal(node):
    return not any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node))


def trusted(prelude):
    """What the prompt itself defines, which the tests take rather than the candidate's."""
    space = {"__name__": "prompt"}
    try:
        exec(compile(prelude, "prompt", "exec"), space)
    except Exception:
        return {}
    return {name: value for name, value in space.items() if not name.startswith("__")}


def space_of(job, trees):
    """The names that the tests find."""
    space = {"__name__": "tests"}
    names = free_names(trees)
    space.update({name: __import__(name) for name in names if name in MODULES})
    space.update({name: LIBRARY[name] for name in names if name in LIBRARY})
    prelude = trusted(job["prelude"]) if job["prelude"] else {}
    own = subjects(trees, job["entry_point"])
    for name in not_imported(trees, own):
        if name not in prelude and name != job["entry_point"]:
            raise BadTests(f"the tests use `{name}` without importing it")
    judge_name = self_judging(trees, {name for name in own if name not in prelude})
    if judge_name:
        raise BadTests(f"a test leaves it to `{judge_name}` of the program whether an answer is right")
    for name in own:
        if name != job["entry_point"] and name in prelude:
            space[name] = prelude[name]
        else:
            space[name] = remote(("n", name))
    return space


def parsed(text):
    try:
        return ast.parse(text.replace("\r\n", "\n"))
    except (SyntaxError, ValueError) as error:
        raise BadTests(f"the tests are no Python: {error}") from error


# What only gives something a name, whatever is in it.
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
# What can fail.
ACTIONS = (ast.Assert, ast.Raise, ast.Call, ast.For, ast.While, ast.If)
# What can end a test without an `assert` or a `raise` that is seen.
ENDING = {"eval", "exec", "exit", "quit", "sys"}


def can_fail(node):
    """Whether a statement of `check` does more than define or name something."""
    if isinstance(node, DEFINITIONS):
        return False
    return isinstance(node, ACTIONS) or any(can_fail(part) for part in ast.iter_child_nodes(node))


def can_judge(tree, check, helpers):
    """Whether `check`, or what it may call, can find a program wrong: whether any of it asserts or raises, or
    comes from elsewhere, as `helpers` do."""
    named, elsewhere = collections.defaultdict(list), ENDING | helpers
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            elsewhere |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        else:
            names = {part.id for part in ast.walk(node)
                     if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
            for name in names | {getattr(node, "name", "")}:
                named[name].append(node)
    seen, left = set(), [check]
    while left:
        for part in ast.walk(left.pop()):
            if isinstance(part, (ast.Assert, ast.Raise, ast.Import, ast.ImportFrom)):
                return True
            name = part.id if isinstance(part, ast.Name) else None
            if name in elsewhere or "*" in elsewhere:
                return True
            if name and name not in seen:
                seen.add(name)
                left.extend(named[name])
    return False


def is_generator(node):
    """Whether there is a `yield` in a function itself."""
    parts = [part for part in ast.iter_child_nodes(node) if not isinstance(part, DEFINITIONS)]
    return any(isinstance(part, (ast.Yield, ast.YieldFrom)) or is_generator(part) for part in parts)


def compiled(tree):
    try:
        return compile(tree, "tests", "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise BadTests(f"the tests are no Python: {error}") from error


def tests_of(job):
    """The tests, each as a function that fails by raising, and how many there are."""
    if job["kind"] == "asserts":
        trees = [parsed(job["setup"]), *[parsed(test) for test in job["tests"]]]
        space = space_of(job, trees)
        codes = [compiled(tree) for tree in trees]
        need([name for name, value in space.items() if isinstance(value, Remote)])
        exec(codes[0], space)
        return [lambda code=code: exec(code, space) for code in codes[1:]]
    tree = parsed(job["test"])
    check = next((node for node in tree.body if getattr(node, "name", None) == "check"), None)
    if not isinstance(check, ast.FunctionDef) or len(check.args.args) != 1 or is_generator(check):
        raise BadTests("the tests have no function check(candidate)")
    space = space_of(job, [tree])
    count = sum(can_fail(node) for node in check.body)
    helpers = {name for name, value in space.items() if callable(value) and not isinstance(value, Remote)}
    if count == 0 or not can_judge(tree, check, helpers - LIBRARY.keys()):
        raise BadTests("check(candidate) asserts nothing")
    stop_after_each(check)
    code = compiled(ast.fix_missing_locations(tree))
    need([job["entry_point"]])
    exec(code, space)
    return steps_of(space["check"](remote(("n", job["entry_point"]))), count)


def stop_after_each(check):
    """Makes `check` a generator: it stops after each statement that can fail, with the error if it did."""
    body = []
    for node in check.body:
        if can_fail(node):
            node = ast.Try(
                body=[node, ast.Expr(ast.Yield(ast.Constant(None)))],
                handlers=[ast.ExceptHandler(ast.Name("Exception", ast.Load()), "_error",
                                            [ast.Expr(ast.Yield(ast.Name("_error", ast.Load())))])],
                orelse=[], finalbody=[])
        body.append(node)
    check.body = body
    check.returns = None


def steps_of(stops, count):
    """The steps of a `check` as tests. The last one goes on to the end, whatever is there."""
    ended_by = []

    def step(is_last):
        if ended_by:
            raise ended_by[0]
        try:
            # One that returns early has nothing against the program.
            error = next(stops, None)
            if is_last and error is None:
                error = next(stops, None)
        except BaseException as end:
            ended_by.append(end)
            raise
        if error is not None:
            raise error

    return [functools.partial(step, idx == count - 1) for idx in range(count)]


def need(names):
    """Looks whether the program has them. It can say so, or be to blame for whatever else it says."""
    request = ["has", None, *names]
    to_candidate(request)
    reply = reply_of(bytes_max=1000 + 12 * len(repr(request)))
    if reply[0] != "value" or type(reply[1]) is not list:
        raise Gone("an answer that is none")
    missing = [name for name in names if name not in reply[1][1:]]
    if missing:
        raise Missing("the program doesn't define " + ", ".join(f"`{name}`" for name in missing[:3]))


def is_not_there(error):
    """Whether an import of the tests themselves is of a module that there isn't."""
    if not isinstance(error, ModuleNotFoundError) or type(error.name) is not str:
        return False
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    # What the program raises is raised here, where its answer came.
    code, name = trace.tb_frame.f_code, error.name
    return code.co_filename == "tests" and any(
        part == name or part.startswith(name + ".") for part in code.co_names)


def judge(job):
    """The result: how many of how many tests passed, and why one didn't."""
    random.seed(0)
    passed, count, reason = 0, 0, ""
    try:
        tests = tests_of(job)
        count = len(tests)
        for idx, test in enumerate(tests):
            try:
                test()
                if gone:
                    raise Gone(gone[0])
                passed += 1
            except (Gone, BadTests):
                raise
            except Exception as error:
                if are_to_blame(error):
                    raise
                what = "fails" if isinstance(error, AssertionError) else f"raises {told(error)}"
                reason = reason or f"test {idx + 1} of {count} {what}"
            if reason and not job["count_all"]:
                break
    except BadTests as error:
        return {"passed": 0, "count": 0, "bad_tests": written(error)}
    except (Gone, Missing) as error:
        # No test passes in which the candidate fell silent, nor any after it.
        reason = reason or written(error)
    except BaseException as error:
        if are_to_blame(error):
            return {"passed": 0, "count": 0, "bad_tests": f"the tests raise {told(error)}"}
        reason = reason or told(error)
    return {"passed": passed, "count": max(count, 1), "reason": written(reason)}


def are_to_blame(error):
    """Whether it is the tests' own fault: before they have asked the program for anything it always is."""
    return not asked or is_not_there(error)


def told(error):
    try:
        return f"{type(error).__name__}: {written(error)}"
    except BaseException:
        # Its text may be the candidate's to give.
        return type(error).__name__


def written(text):
    """A text as far as it can be written: one of the candidate's may have halves of characters."""
    return str(text)[:200].encode("utf-8", "replace").decode()


def died(status):
    is_late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    return "the tests take too long" if is_late else "the tests' process died"


def main():
    """Forks for each job, so that none sees another's leavings."""
    while True:
        job = receive()
        pid = os.fork()
        if pid == 0:
            job = json.loads(job)
            resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"]))
            result = judge(job)
            send(b"R", json.dumps(result))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status != 0:
            send(b"R", json.dumps({"passed": 0, "count": 1, "died": True, "reason": died(status)}))


if __name__ == "__main__":
    getattr(sys, "set_int_max_str_digits", len)(DIGITS_MAX)
    CHANNEL = os.dup(1)
    # What the tests print goes where descriptor 2 leads: nowhere.
    os.dup2(2, 1)
    main()
