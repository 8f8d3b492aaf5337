"""Triton's interpreter without what it does over and over: tests in it take half the time.

It looks for the language's functions anew whenever one device function calls another, fills a table
of number types for each array, makes constants of each tensor's sizes, and takes nine operations on
tensors to see that an integer did not overflow, of which it says nothing then: here it is an error.
"""

import functools

import numpy
import triton.language as tl
from triton.language import semantic
from triton.runtime import interpreter

OPERATIONS = {"add": numpy.add, "sub": numpy.subtract, "mul": numpy.multiply}


class NothingToRestore:
    def restore(self):
        pass


PRIVATE = ("_patch_lang", "_get_np_dtype", "InterpreterBuilder")


def install():
    """For the rest of the process; of a Triton that lacks what is replaced, nothing."""
    if not all(hasattr(interpreter, name) for name in PRIVATE):
        return
    patch = interpreter._patch_lang

    def patch_once(function):
        """The language's functions become the interpreter's own, if they are not already."""
        languages = [v for v in function.__globals__.values() if v is tl or v is tl.core]
        if languages and not any(tl.core.is_builtin(language.load) for language in languages):
            return NothingToRestore()
        return patch(function)

    interpreter._patch_lang = patch_once

    number_type = functools.cache(interpreter._get_np_dtype)

    def number_type_once(type):
        scalar = type.scalar
        return numpy.dtype(numpy.uint64) if scalar.is_ptr() else number_type(scalar)

    interpreter._get_np_dtype = number_type_once

    initialise, sizes = tl.tensor.__init__, {}

    def initialise_once(self, handle, type):
        """The sizes of a shape are made into constants once."""
        shape = tuple(type.shape) if type.is_block() else ()
        if shape not in sizes:
            initialise(self, handle, type)
            sizes[shape] = self.numel, self.shape
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = sizes[shape]

    tl.tensor.__init__ = initialise_once

    triton_semantic = getattr(semantic, "TritonSemantic", None)  # in Triton 3.2 there is none
    if not hasattr(triton_semantic, "binary_op_sanitize_overflow_impl"):
        return
    check = triton_semantic.binary_op_sanitize_overflow_impl

    def check_at_once(self, lhs, rhs, binary_op):
        """That the result in 64 bits fits into the fewer that it has."""
        type = lhs.type.scalar
        operation = OPERATIONS.get(binary_op.__name__)
        if not isinstance(self.builder, interpreter.InterpreterBuilder) or operation is None:
            return check(self, lhs, rhs, binary_op)
        if type.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
            return None
        assert type == rhs.type.scalar
        wide = (numpy.asarray(side.handle.data).astype(numpy.int64) for side in (lhs, rhs))
        result = operation(*wide)
        least, most = type.get_int_min_value(), type.get_int_max_value()
        fits = least <= result.min() and result.max() <= most
        assert fits, f"int{type.int_bitwidth} overflow detected for operation {binary_op.__name__}"
        return None

    triton_semantic.binary_op_sanitize_overflow_impl = check_at_once
