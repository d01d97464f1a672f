from .doctor_report import examine as examine
