//! Small documents that are put: `.ls`, logs, realisations, debuginfo.
