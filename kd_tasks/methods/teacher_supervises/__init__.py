"""Teacher Supervises Students: a teacher says which pseudo labels of two students are worth training on (Dong 2019).

Few faces have landmarks and many have none. Two students of different architecture learn from the few, label the rest,
and a teacher that has learnt how good a labelled face is keeps the best of these labels; with them the students go on.
More are kept from round to round.
"""

from kd_tasks.methods.teacher_supervises.model import BothStudents, TeacherSupervisesStudents
from kd_tasks.methods.teacher_supervises.rounds import SupervisedRounds

__all__ = ["BothStudents", "SupervisedRounds", "TeacherSupervisesStudents"]
