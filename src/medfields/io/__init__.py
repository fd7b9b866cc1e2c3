"""Files in and out: images as `Volume`, fields as `.field`, always in RAS+ mm, always whole or not at all."""

from .atomic import atomic, check_writable
from .dicom import read_dicom
from .dicom_write import write_dicom
from .dirlab import read_dirlab
from .field import read_field, read_field_header, write_field
from .itk import read_itk, write_itk
from .landmarks import read_landmarks, write_landmarks
from .nifti import read_nifti, write_nifti
from .picture import read_image
from .projections import read_projections, write_projections
from .read import check_image_path, read_volume, write_volume
from .scan import Scan
from .source import check_finite, check_not_constant
from .transforms import read_affine, read_displacement, read_transform, write_affine, write_composite, write_displacement

__all__ = [
    "Scan", "atomic", "check_finite", "check_image_path", "check_not_constant", "check_writable", "read_affine", "read_dicom", "read_dirlab",
    "read_displacement", "read_field", "read_field_header", "read_image", "read_itk", "read_landmarks", "read_nifti", "read_projections",
    "read_transform", "read_volume", "write_affine", "write_composite", "write_dicom", "write_displacement", "write_field", "write_itk",
    "write_landmarks", "write_nifti", "write_projections", "write_volume",
]
