"""Every loss by its definition, in float64 NumPy: with the whole matrix of pairs, expert by expert."""

import numpy as np


def bpr(positive, negative, where):
    return sum(np.logaddexp(0, -(p - n)) for p, n, w in zip(positive, negative, where) if w)


def cosines(x, y):
    length = lambda rows: np.sqrt(np.sum(rows**2, axis=1))
    lengths = np.outer(length(x), length(y))
    return np.divide(x @ y.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def ftd(student, teacher, where):
    student, teacher = student[where], teacher[where]
    return np.sum((cosines(teacher, teacher) - cosines(student, student)) ** 2)


def entity_level(student, teacher, groups, where, pairs):
    student, teacher, groups = student[where], teacher[where], groups[where]
    near = cosines(teacher, teacher)
    counted = groups[:, None] == groups[None, :]
    if pairs == "positive":
        counted &= near > 0
    return np.sum((near - cosines(student, student))[counted] ** 2)


def group_level(student, teacher, groups, where, level, prototypes=None):
    """Returns the group level; `prototypes` are the student's where they are constants, see `prototypes_of`."""
    student, teacher, groups = student[where], teacher[where], groups[where]
    student_prototypes = prototypes_of(student, groups) if prototypes is None else prototypes
    teacher_prototypes = prototypes_of(teacher, groups)
    if level == "prototype-prototype":
        student, teacher = student_prototypes, teacher_prototypes
    return np.sum((cosines(teacher_prototypes, teacher) - cosines(student_prototypes, student)) ** 2)


def prototypes_of(rows, groups):
    return np.array([rows[groups == g].mean(0) for g in np.unique(groups)]).reshape(-1, rows.shape[1])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def assignment(student, teacher, mixture, experts, where):
    total = 0.0
    for s, t, z, w in zip(student, teacher, mixture, where):
        if not w:
            continue
        output = np.zeros_like(t)
        for k, weight in enumerate(z):
            hidden = np.maximum(s @ experts["hidden"]["kernel"][k] + experts["hidden"]["bias"][k], 0)
            output = output + weight * (hidden @ experts["output"]["kernel"][k] + experts["output"]["bias"][k])
        total += np.sum((t - output) ** 2)
    return total


def ranks(scores, hidden, targets):
    """Returns the rank of each (user, item) of `targets`: one plus the visible items that score at least as much."""
    result = []
    for user, item in targets:
        others = [j for j in range(scores.shape[1]) if j != item and j not in hidden[user]]
        result.append(1 + sum(not scores[user, j] < scores[user, item] for j in others))
    return result


def slope(function, x, direction, step=1e-6):
    """Returns the derivative of `function` at the array `x` along `direction`, by central differences."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)
